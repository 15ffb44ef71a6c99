"""Owns when a training is saved, how many checkpoints are kept, and what is known of the last."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING

from rustgpt import history
from rustgpt.cli.terminal import note
from rustgpt.errors import CheckpointError

if TYPE_CHECKING:
    from rustgpt.folder_lock import FolderLock
    from rustgpt.trainer import Trainer
    from rustgpt.training_state import Step


class Keeper:
    """Saves a model, and what its training needs to go on, while it is trained.

    Parameters
    ----------
    trainer, folder
        Of the model, and where to; locked by the caller.
    every
        Seconds from one save to the next within a phase; 0 for none.
    keep
        How many checkpoints before the last one are kept.
    goes_on
        Whether the folder holds this training as it is.
    """

    def __init__(
        self,
        trainer: Trainer,
        folder: FolderLock,
        every: float,
        keep: int = 0,
        goes_on: bool = False,
    ) -> None:
        from rustgpt.checkpoint import is_model

        self._trainer = trainer
        self._folder = folder
        self._every = every
        self._keep = keep
        self._replaces = is_model(folder)
        self._last = trainer.exchange.now()
        self._saved = self._now() if goes_on else None  # what of the training is on disk
        self._when = f"at step {trainer.steps:,}" if goes_on else ""

    def _now(self) -> tuple[int, int, int]:
        """Return how far the training is: its steps, and what is counted after a step."""
        state = self._trainer.state
        return state.steps, state.epoch, state.evaluated

    def after_step(self, step: Step) -> None:
        """Save if it is time, and the phase does not end with this step."""
        due = self._every and self._trainer.exchange.now() - self._last >= self._every
        if due and step.number < step.total:
            self.save(f"at {step.phase}, step {step.number:,} of {step.total:,}")

    def before_evaluation(self) -> None:
        """Save, so that no evaluation can cost work; but not more than once a second."""
        state = self._trainer.state
        if self._saved is None or self._trainer.exchange.now() - self._last >= 1:
            self.save(f"at {state.phase}, step {state.step:,}")

    def save(self, when: str) -> None:
        """Save, unless that was done at this point; an error is told and no more."""
        if self._saved != self._now() and (error := self._save(when)):
            note(f"rustgpt: {error}; the training goes on")

    def _save(self, when: str) -> CheckpointError | None:
        """Save; return what went wrong."""
        try:
            if self._keep and self._saved is not None and self._trainer.exchange.is_first:
                self._keep_last(self._saved[0])
            self._trainer.save(self._folder)
        except CheckpointError as error:
            return error
        finally:  # not before: a save that takes long shall not be all that is done
            self._last = self._trainer.exchange.now()
        self._saved, self._when = self._now(), when
        if self._trainer.exchange.is_first:
            history.prune(self._folder.folder, self._keep, before=self._trainer.steps)
        return None

    def _keep_last(self, step: int) -> None:
        """Keep the checkpoint of a step, which is about to be replaced."""
        try:
            history.keep(self._folder.folder, step)
        except CheckpointError as error:
            note(f"rustgpt: {error}; the training goes on")

    def finish(self) -> None:
        """Have the model on disk as it is now; if not in its folder, raise CheckpointError."""
        if self._saved == self._now() or not (error := self._save("at the end")):
            return
        refuge = ""
        try:
            refuge = self._trainer.exchange.from_first("save", _new_folder)
            self._trainer.save(refuge)
        except (CheckpointError, OSError):
            shutil.rmtree(refuge, ignore_errors=True)
            raise CheckpointError(f"{error}; {self.on_disk()}") from None
        raise CheckpointError(f"{error}; the trained model is in {refuge}: move it to a safe place")

    def on_disk(self) -> str:
        """Say which model is in the folder."""
        if self._saved is not None:
            return f"{self._folder.folder} holds a good model, saved {self._when}"
        if self._replaces:
            return f"{self._folder.folder} still holds the model that was there before"
        return "no model was saved"


def _new_folder() -> str:
    return tempfile.mkdtemp(prefix="rustgpt-model-")
