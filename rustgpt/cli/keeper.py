"""Owns when a training's model is saved, and what is known of the one on disk."""

from __future__ import annotations

import shutil
import tempfile
import time
from typing import TYPE_CHECKING

from rustgpt.cli.terminal import note
from rustgpt.errors import CheckpointError

if TYPE_CHECKING:
    from rustgpt.folder_lock import FolderLock
    from rustgpt.trainer import Trainer
    from rustgpt.training_state import Step


class Keeper:
    """Saves a model while it is trained.

    Parameters
    ----------
    trainer, folder
        Of the model, and where to; locked by the caller.
    every
        Seconds from one save to the next within a phase; 0 for none.
    """

    def __init__(self, trainer: Trainer, folder: FolderLock, every: float) -> None:
        from rustgpt.checkpoint import is_model

        self._trainer = trainer
        self._folder = folder
        self._every = every
        self._replaces = is_model(folder)
        self._last = time.monotonic()
        self._saved: int | None = None  # the step of the model on disk
        self._when = ""

    def after_step(self, step: Step) -> None:
        """Save if it is time."""
        if self._every and time.monotonic() - self._last >= self._every:
            self.save(f"at {step.phase}, step {step.number:,} of {step.total:,}")

    def before_evaluation(self) -> None:
        """Save, so that no evaluation can cost work; but not more than once a second."""
        state = self._trainer.state
        if self._saved is None or time.monotonic() - self._last >= 1:
            self.save(f"at {state.phase}, step {state.step:,}")

    def save(self, when: str) -> None:
        """Save, unless that was done after this step; an error is told and no more."""
        if self._saved != self._trainer.steps and (error := self._save(when)):
            note(f"rustgpt: {error}; the training goes on")

    def _save(self, when: str) -> CheckpointError | None:
        """Save; return what went wrong."""
        try:
            self._trainer.model.save(self._folder)
        except CheckpointError as error:
            return error
        finally:  # not before: a save that takes long shall not be all that is done
            self._last = time.monotonic()
        self._saved, self._when = self._trainer.steps, when
        return None

    def finish(self) -> None:
        """Have the model on disk as it is now; if not in its folder, raise CheckpointError."""
        if self._saved == self._trainer.steps or not (error := self._save("at the end")):
            return
        refuge = ""
        try:
            refuge = tempfile.mkdtemp(prefix="rustgpt-model-")
            self._trainer.model.save(refuge)
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
