"""Owns how the learning rate changes over a training."""

import math


def learning_rate(
    step: int,
    total_steps: float,
    peak: float,
    schedule: str = "constant",
    warmup_steps: int = 0,
    final: float = 0.1,
) -> float:
    """Return the rate of a step (the first is 0), which is never above the peak.

    It rises evenly over `warmup_steps`, then stays ("constant"), or falls to `final * peak` at the
    last step: along a straight line ("linear"), or half a cosine ("cosine", Loshchilov and Hutter
    2017). A training that ends before its warm-up does ends below the peak.

    Parameters
    ----------
    total_steps
        How many there will be. Where time or tokens end a training it is an estimate, with a part
        behind the point: then the share of the training that is over is step / (total_steps - 1).
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    share = (step - warmup_steps) / max(1, total_steps - 1 - warmup_steps)
    left = 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return peak * (final + (1 - final) * max(left, 0.0))
