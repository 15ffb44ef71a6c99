"""Owns `--dry-run`: what a training would take, found out by a few of its steps."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from rustgpt.benchmark import peak_memory_mb
from rustgpt.cli.terminal import say, span
from rustgpt.text.stored import encode_all
from rustgpt.trainer import Trainer
from rustgpt.training_state import perplexity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rustgpt.llm import LLM
    from rustgpt.phase import Phase
    from rustgpt.plan import PlannedPhase
    from rustgpt.stepper import Stepper
    from rustgpt.text.pieces import Text
    from rustgpt.training_state import Epoch, Step

SECONDS: Final = 2.0  # of steps that are measured in each phase
STEPS: Final = 5  # at least
# What is said of the memory above what was seen, as a share and in MB: a whole training has more of
# it in small pieces, and writes files.
MARGIN: Final = 0.06
ROOM: Final = 5


@dataclass(frozen=True)
class Estimate:
    """What a phase would come to.

    Parameters
    ----------
    steps, epochs
        How many there would be.
    tokens_per_second, seconds
        How fast, and how long.
    """

    steps: int
    epochs: int
    tokens_per_second: float
    seconds: float


class Rehearsal(Trainer):
    """A training that begins with its largest step, so that it soon has all the memory it needs."""

    sample: Callable[[], object] | None = None  # what the model writes meanwhile, if anything

    def _epochs(self, phase: Phase, stepper: Stepper) -> list[Epoch]:
        stepper.step(phase.largest(self.state, self.config), 0.0)
        self.model.tokenizer.to_json()  # which is saved
        if self.sample:
            self.sample()
        return super()._epochs(phase, stepper)


def measure(
    planned: Trainer, phase: PlannedPhase, sample: Callable[[], object] | None = None
) -> Estimate | None:
    """Make a phase's largest step and its first ones, at a rate of 0, and begin its validation.

    With `sample`, which is called once, the model writes something meanwhile.
    """
    found: list[tuple[Step, float]] = []
    clock = planned.exchange.now  # of several processes the same
    began = clock()

    def after(step: Step) -> None:
        found.append((step, clock() - began))
        enough = len(found) >= STEPS and found[-1][1] > SECONDS
        if enough and trainer.held_out_texts:
            trainer.config = dataclasses.replace(still, eval_every=1)  # the last thing
        elif enough:
            trainer.stop()

    still = dataclasses.replace(planned.config, pretrain_rate=0.0, tune_rate=0.0, patience=0)
    still = dataclasses.replace(still, eval_every=10**9)
    trainer = Rehearsal(planned.model, still, on_step=after, exchange=planned.exchange)
    trainer.replay, trainer.sample = planned.replay, sample
    trainer.before_evaluation = trainer.stop
    phase.learn(trainer)
    if not found:
        return None
    step, taken = found[-1]
    return Estimate(step.total, step.epochs, step.tokens_per_second, taken + step.seconds_left)


def guessing_loss(texts: Sequence[Text], model: LLM, loss_on: str = "") -> float:
    """Return the mean loss of always guessing each token as often as it comes."""
    rows = encode_all(texts, model.text_format, loss_on)
    counts = rows.frequencies(model.tokenizer.vocab_size)  # (V,)
    shares = counts[counts > 0] / max(1, counts.sum())
    return max(0.0, -float((shares * np.log(shares)).sum()))


def report(
    trainer: Trainer,
    phases: Iterable[PlannedPhase],
    sample: Callable[[], object] | None = None,
) -> None:
    """Print what a training would take; see `measure`."""
    model, config, total = trainer.model, trainer.config, 0.0
    for phase in phases:
        estimate = measure(trainer, phase, sample) if phase.texts and phase.epochs else None
        if estimate is None:
            continue
        total += estimate.seconds
        loss = guessing_loss(phase.texts, model, config.loss_on if phase.tunes else "")
        say(
            f"{phase.name}: {estimate.steps:,} steps in {estimate.epochs:,} epochs, "
            f"{estimate.tokens_per_second:,.0f} tokens/s, {span(estimate.seconds)}; always "
            f"guessing by frequency has a loss of {loss:.4f} (perplexity {perplexity(loss):,.4g})"
        )
    memory = peak_memory_mb()
    say(f"Parameters: {model.n_parameters:,}")
    if memory is None:
        say("Peak memory: not known on this system")
    else:
        say(f"Peak memory: {math.ceil(memory * (1 + MARGIN)) + ROOM:,} MB")
    say(f"Time: {span(total)}")
