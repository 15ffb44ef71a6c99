"""Owns what is told of a training while it runs, and the best model that it had."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rustgpt.cli.terminal import Progress, span
from rustgpt.errors import CheckpointError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rustgpt.cli.interrupts import Interrupts
    from rustgpt.cli.keeper import Keeper
    from rustgpt.trainer import Trainer
    from rustgpt.training_state import Evaluation, Step

BEST: Final = "best"  # the folder, within that of the training, for the best model
LONG: Final = 600.0  # seconds of a training that tells how long it takes
EVALUATIONS: Final = 20  # that are told of in a phase, unless it was said how many there are
MEASURED: Final = 3  # steps until that can be told


class Watch:
    """Looks after a training.

    Parameters
    ----------
    trainer
        Whose hooks it takes.
    keeper
        Saves the model.
    folder
        Where to; the best model is saved in a folder within it.
    interrupts
        May ask for an end.
    sample
        Returns what the model writes now.
    sample_every
        Steps from one sample to the next; 0 for none.
    limited
        Whether it was said when the training ends.

    Attributes
    ----------
    best : Evaluation
        Of the model in the folder for the best; None if there is none.
    """

    def __init__(
        self,
        trainer: Trainer,
        keeper: Keeper,
        folder: str,
        interrupts: Interrupts,
        sample: Callable[[], str],
        sample_every: int = 0,
        limited: bool = True,
    ) -> None:
        self._trainer = trainer
        self._keeper = keeper
        self._folder = Path(folder) / BEST
        before = [found for found in trainer.evaluations if found.best]  # of one that goes on
        self.best = before[-1] if before and self._folder.exists() else None
        self._interrupts = interrupts
        self._sample = sample
        self._sample_every = sample_every
        self._tells_time = not limited
        self._progress = Progress("")
        self._steps, self._part = 0, 1.0
        self._total, self._told = 1, 0
        trainer.on_step = self.after_step
        trainer.before_evaluation = keeper.before_evaluation
        trainer.on_evaluation = self.after_evaluation

    def phase(self, name: str, part: float) -> Progress:
        """Begin a phase, which is a part of the whole training; enter what is returned."""
        self._progress = Progress(name)
        self._steps, self._part = 0, part
        self._total, self._told = 1, 0
        return self._progress

    def after_step(self, step: Step) -> None:
        """Show, save, and stop if that was asked for."""
        if (
            self._interrupts.asks_for_end
        ):  # the signal may have come before there was anything to stop
            self._trainer.stop()
        self._steps, self._total = self._steps + 1, step.total
        if self._steps == 1:
            self._tell_what_is_held_out()
        if self._tells_time and self._steps == min(MEASURED, step.total):
            self._tell_time(step)
        self._progress.show(step)
        if self._sample_every and step.number % self._sample_every == 0:
            text = self._trainer.exchange.from_first("sample", self._sampled)
            self._progress.note(f"{step.phase}, step {step.number:,}, sample: {text}")
        self._keeper.after_step(step)

    def after_evaluation(self, evaluation: Evaluation) -> None:
        """Tell of an evaluation, and keep the model if it is the best."""
        from rustgpt.training_state import perplexity

        loss = evaluation.loss
        figures = f"validation loss {loss:.4f}, perplexity {evaluation.perplexity:,.4g}"
        if math.isfinite(evaluation.bits_per_byte):
            figures += f", {evaluation.bits_per_byte:.4f} bits per byte"
        training = evaluation.training_loss
        figures += f"; training loss {training:.4f}, perplexity {perplexity(training):,.4g}"
        best = "; the best so far" if evaluation.best else ""
        told = evaluation.step * EVALUATIONS // self._total
        if self._trainer.config.eval_every or told > self._told:
            self._progress.note(f"{evaluation.phase}, step {evaluation.step:,}: {figures}{best}")
            self._told = told
        patience = self._trainer.config.patience
        if patience and self._trainer.state.waited >= patience:
            self._progress.note(
                f"rustgpt: no lower validation loss for {patience} evaluations, so the "
                f"{evaluation.phase} ends; --patience 0 lets it go on"
            )
        if evaluation.best:
            try:
                self._trainer.exchange.from_first("save the best", self._save_best)
            except CheckpointError as error:
                self._progress.note(f"rustgpt: {error}; the training goes on")
            else:
                self.best = evaluation

    def _save_best(self) -> None:
        self._trainer.model.save(self._folder)

    def tell_of_best(self) -> str:
        """Return where the best model is, and which it is; "" if there was no evaluation."""
        if self.best is None:
            return ""
        return (
            f"The model with the lowest validation loss, {self.best.loss:.4f} after step "
            f"{self.best.step:,} of the {self.best.phase}, is in {self._folder}."
        )

    def _tell_what_is_held_out(self) -> None:
        trainer = self._trainer
        if trainer.too_small_to_split:
            self._progress.note(
                "rustgpt: these texts are too small to split: all are learned, without a validation"
            )
        elif trainer.held_out_texts:
            self._progress.note(
                f"validation: {trainer.held_out_texts:,} texts (or their ends) are not learned"
            )

    def _tell_time(self, step: Step) -> None:
        seconds = step.seconds_left / self._part
        if seconds > LONG:
            self._progress.note(
                f"rustgpt: at this pace the training takes about {span(seconds)} "
                f"({step.total:,} steps of the {step.phase}); --max-time 10m, --max-steps or fewer "
                "epochs end it sooner, and Ctrl-C at any time, with the model saved"
            )
        self._tells_time = False

    def _sampled(self) -> str:
        try:
            return self._sample().strip()
        except DataError as error:  # the context is too short
            return f"none: {error}"
