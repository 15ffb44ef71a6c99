"""Owns how the learning rate changes over a training."""

import math


def learning_rate(
    step: int,
    total_steps: int,
    peak: float,
    schedule: str = "constant",
    warmup_steps: int = 0,
    final: float = 0.1,
) -> float:
    """Return the rate of a step (the first is 0).

    It rises evenly over `warmup_steps`, then stays ("constant"), or falls along half a cosine to
    `final * peak` at the last step ("cosine", Loshchilov and Hutter 2017).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0))))
