"""Owns what lies beside a model so that its training can go on: training.json and its arrays."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Self

from rustgpt import checkpoint
from rustgpt.checkpoint import Saved, safetensors
from rustgpt.config import TrainConfig
from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.llm import LLM
from rustgpt.optim.optimizer import Optimizer
from rustgpt.parallel.exchange import Exchange
from rustgpt.parallel.pool import available_threads
from rustgpt.parallel.shared import gathered
from rustgpt.stepper import adam
from rustgpt.training_state import Epoch, Evaluation, Step, TrainingState

RECORD: Final = "training.json"
ARRAYS: Final = "training.safetensors"
FILES: Final = (RECORD, ARRAYS)
FORMAT: Final = "rustgpt-training"
VERSION: Final = 1
# What two processes must have in common before they train together.
PROGRESS: Final = ("epochs", "evaluations", "phases", "notes", "replay", "_finished", "_goes_on")
# Of an epoch: what no two runs have in common.
TIMES: Final[dict[str, Any]] = {"tokens_per_second": 0.0, "seconds_left": 0.0}


@dataclass(frozen=True)
class TrainingRecord:
    """A training as it is written down.

    Parameters
    ----------
    state
        How far it has come. Of a phase that is complete, the optimizer is left out: the next one
        begins afresh.
    config
        Its settings.
    phases
        The names of the phases that were begun.
    epochs
        The complete ones; how long they took is left out.
    evaluations
        What the validation came to.
    notes
        Plain values of whoever trains, such as where the data came from.
    """

    state: TrainingState
    config: TrainConfig
    phases: list[str]
    epochs: list[Epoch]
    evaluations: list[Evaluation]
    notes: dict[str, Any] = field(default_factory=dict)

    def files(self) -> dict[str, Iterable[bytes | memoryview]]:
        """Return the contents of the files, by name, in parts.

        Raises
        ------
        CheckpointError
            If the optimizer's state, or a note, is nothing that a file can hold.
        """
        state = self.state
        if state.complete:
            state = dataclasses.replace(state, optimizer={})
        values, arrays = state.to_parts()
        content = {
            "format": FORMAT,
            "version": VERSION,
            "settings": self.config.to_dict(),
            "state": values,
            "phases": self.phases,
            "epochs": [_epoch_values(epoch) for epoch in self.epochs if epoch.complete],
            "evaluations": [_evaluation_values(evaluation) for evaluation in self.evaluations],
            "notes": self.notes,
        }
        try:
            text = json.dumps(content, indent=1, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"the training's state cannot be written: {error}") from error
        files: dict[str, Iterable[bytes | memoryview]] = {RECORD: [text.encode() + b"\n"]}
        return {**files, ARRAYS: safetensors(arrays)} if arrays else files

    @classmethod
    def read(cls, saved: Saved) -> TrainingRecord:
        """Read what lies beside a model.

        Raises
        ------
        CheckpointError
            If there is none, or it is damaged, from another save or of a newer rustgpt.
        """
        path = saved.folder / RECORD
        if RECORD not in saved:
            raise CheckpointError(
                f"{saved.folder} holds a model but no state of its training (no {RECORD}), so it "
                f"cannot be resumed: train on from it with --init {saved.folder}"
            )
        try:
            content = json.loads(saved.file(RECORD).read().decode())
            if content["format"] != FORMAT:
                raise ValueError(f'it lacks "format": "{FORMAT}"')
            if content["version"] > VERSION:
                raise CheckpointError(f"{path} is of a newer rustgpt: upgrade rustgpt")
            arrays = saved.arrays(ARRAYS) if ARRAYS in saved else {}
            return cls(
                TrainingState.from_parts(content["state"], arrays),
                # Of a training that was saved before there were these settings, they were 0.
                TrainConfig.from_dict(
                    {"tune_replay": 0.0, "tune_join": 0.0, **content["settings"]}
                ),
                [str(phase) for phase in content["phases"]],
                [_epoch(values) for values in content["epochs"]],
                [_evaluation(values) for values in content["evaluations"]],
                dict(content["notes"]),
            )
        except (
            ConfigError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            RecursionError,
        ) as error:
            why = f"lacks {error}" if isinstance(error, KeyError) else error
            raise CheckpointError(f"{path} is no state of a training: {why}") from error


def _evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON can hold it, which knows no NaN."""
    values = dataclasses.asdict(evaluation)
    bits = evaluation.bits_per_byte
    return {**values, "bits_per_byte": bits if math.isfinite(bits) else None}


def _evaluation(values: dict[str, Any]) -> Evaluation:
    bits = values["bits_per_byte"]
    return Evaluation(**{**values, "bits_per_byte": math.nan if bits is None else bits})


def _epoch_values(epoch: Epoch) -> dict[str, Any]:
    """Return an epoch as JSON can hold it, without times."""
    values = {k: v for k, v in dataclasses.asdict(epoch).items() if k not in TIMES}
    found = epoch.validation
    return {**values, "validation": found and _evaluation_values(found)}


def _epoch(values: dict[str, Any]) -> Epoch:
    found = values["validation"]
    return Epoch(**{**TIMES, **values, "validation": found and _evaluation(found)})


class Recorded:
    """What a trainer is in so far as it is written down, and goes on from there."""

    model: LLM
    config: TrainConfig
    state: TrainingState
    phases: list[str]
    epochs: list[Epoch]
    evaluations: list[Evaluation]
    notes: dict[str, Any]
    exchange: Exchange
    _finished: tuple[str, ...] = ()  # phases that `resume` has found complete

    @classmethod
    def resume(
        cls,
        folder: str | os.PathLike[str],
        on_epoch: Callable[[Epoch], None] | None = None,
        on_step: Callable[[Step], None] | None = None,
        optimizer: Callable[[LLM, TrainConfig], Optimizer] = adam,
        threads: int | None = None,
        exchange: Exchange | None = None,
        **model: Any,
    ) -> Self:
        """Return a trainer, with its model, that goes on where `save` has written it down.

        Train it with the same calls and the same data as before. A phase that was complete returns
        at once; the one that was stopped goes on, byte for byte as if nothing had happened.

        Parameters
        ----------
        folder
            What `save`, or `rustgpt train`, has written.
        on_epoch, on_step, optimizer
            As for a new trainer.
        threads
            Instead of as many as before; another number changes the last bits of the result.
        exchange
            As for a new trainer; there may be another number of processes than before.
        **model
            The `layers` and `tokenizer` of `LLM.load`, if they are your own.

        Raises
        ------
        CheckpointError
            If the folder holds no training, or a file is missing or damaged.
        """
        with checkpoint.load(folder, FILES) as saved:
            record = TrainingRecord.read(saved)
            llm = LLM.from_saved(saved, **model)
        config = record.config
        if threads is not None:
            config = dataclasses.replace(config, threads=threads)
        trainer: Any = cls(llm, config, on_epoch, on_step, optimizer, exchange=exchange)  # type: ignore[call-arg]
        trainer.state, trainer._goes_on = record.state, not record.state.complete
        trainer.epochs, trainer.evaluations = record.epochs, record.evaluations
        trainer.phases, trainer.notes = record.phases, record.notes
        trainer._finished = (*record.phases[: record.state.phases_done],)
        return trainer  # type: ignore[no-any-return]

    def progress(self) -> dict[str, Any]:
        """Return how far the training has come, for `take_over`; without the optimizer's state."""
        values = {name: getattr(self, name) for name in PROGRESS}
        return {**values, "state": dataclasses.replace(self.state, optimizer={})}

    def take_over(self, progress: dict[str, Any]) -> None:
        """Be as far as another process's trainer, from which the optimizer's state comes later."""
        vars(self).update(progress)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model and what its training needs to go on, all at once; see `resume`.

        Call it between two trainings, or in `on_step` or `on_epoch`. Of several processes, all
        call it and the first writes.

        Raises
        ------
        CheckpointError
            As `LLM.save`.
        """
        threads = self.config.threads or available_threads()
        config = dataclasses.replace(self.config, threads=threads)
        state = self.state
        if not state.complete:
            held = gathered(self.exchange, state.optimizer, self.model.n_parameters)
            state = dataclasses.replace(state, optimizer=held)
        record = TrainingRecord(
            state, config, self.phases, self.epochs, self.evaluations, self.notes
        )
        self.exchange.from_first("save", lambda: self.model.save(folder, record.files()))

    def _was_complete(self, phase: str) -> bool:
        """Whether a phase was complete when the training was resumed; of that it tells once."""
        if phase not in self._finished:
            return False
        at = self._finished.index(phase)
        self._finished = self._finished[:at] + self._finished[at + 1 :]
        return True
