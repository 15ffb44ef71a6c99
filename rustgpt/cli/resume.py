"""Owns `--resume`: what a training needs to be gone on with, and which flags contradict it."""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rustgpt.cli import adding
from rustgpt.cli.chat import DEFAULT_MODEL
from rustgpt.cli.checks import check_folder
from rustgpt.cli.settings import given_settings
from rustgpt.cli.terminal import note
from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import CheckpointError, ConfigError, DataError
from rustgpt.history import newest_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rustgpt.parallel.exchange import Exchange
    from rustgpt.text.dataset import Dataset
    from rustgpt.trainer import Trainer

# The arguments that say which data, and what is done with them.
DATA: Final = (
    *("paths", "pretrain", "chat", "format", "language", "tokenizer", "vocab_size"),
    *adding.ARGUMENTS,
)
FILES: Final = ("paths", "pretrain", "chat", "init", "cache")  # of these, the ones that name files
# Which may be others when the training goes on.
RUN: Final = ("save_every", "keep", "sample_every", "cache")


def write_notes(
    trainer: Trainer, args: argparse.Namespace, dataset: Dataset, old: Sequence[str]
) -> None:
    """Note with a training what `--resume` must know beside its settings.

    Parameters
    ----------
    old
        Texts that are learned again.
    """
    trainer.notes.update(
        data={name: _whole(name, getattr(args, name, None)) for name in DATA},
        sha256=digests(dataset, old),
        run={name: _whole(name, getattr(args, name)) for name in RUN},
        phases=phases(dataset, trainer.config),
        **_machine(trainer),
    )


def _whole(name: str, value: Any) -> Any:
    """Return an argument with the files that it names as absolute paths; "-" is no file."""
    if name == "replay" and value:
        return [value[0], *map(os.path.abspath, value[1:])]
    if isinstance(value, list):
        return [_whole(name, one) for one in value]
    is_file = name in FILES and isinstance(value, str) and value != "-"
    return os.path.abspath(value) if is_file else value


def phases(dataset: Dataset, config: TrainConfig) -> int:
    """Return how many phases a training has: one without texts or epochs is left out."""
    pretrains = bool(dataset.pretraining_data and config.pretrain_epochs)
    return pretrains + bool(dataset.chat_training_data and config.tune_epochs)


def digests(dataset: Dataset, old: Sequence[str]) -> dict[str, str]:
    """Return the SHA-256 of the texts of each phase, and of the old ones."""
    from rustgpt.text.stored import digest

    return {
        "pretrain": digest(dataset.pretraining_data),
        "chat": digest(dataset.chat_training_data),
        "replay": digest(old),
    }


# To go on


def source(args: argparse.Namespace) -> str:
    """Return the folder of the training that shall go on, if any; `--out` is it by default."""
    if isinstance(args.resume, str) and args.out is DEFAULT_MODEL:
        args.out = args.resume
    return args.resume if isinstance(args.resume, str) else str(args.out) if args.resume else ""


def take_up(args: argparse.Namespace, folder: str, exchange: Exchange) -> Trainer:
    """Return the training that `--resume` means; its data's arguments take the place of `args`'s.

    Raises
    ------
    CheckpointError
        If there is none, or a file is damaged: the message names the newest whole checkpoint.
    ConfigError
        If a flag contradicts the training.
    """
    from rustgpt.parallel.pool import available_threads
    from rustgpt.trainer import Trainer

    if args.overwrite and folder == args.out:
        raise ConfigError("--resume goes on and --overwrite begins anew: leave one of them out")
    if folder != args.out and Path(folder).resolve().parent != Path(args.out).resolve():
        check_folder(args.out, bool(args.overwrite))
    try:
        threads = getattr(args, "threads", None)
        trainer = Trainer.resume(folder, threads=threads, exchange=exchange)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_offer(Path(folder), args.out)}") from error
    if "data" not in trainer.notes:
        raise CheckpointError(
            f"the training in {folder} was not begun by rustgpt train, which does not know its "
            "data: go on with Trainer.resume in Python"
        )
    if threads is None and trainer.notes.get("processes", 1) != exchange.size:
        trainer.config = dataclasses.replace(
            trainer.config, threads=exchange.threads(available_threads())
        )
    _check_flags(args, trainer, folder)
    _tell_of_other_bits(trainer)
    for name, value in (trainer.notes["data"] | trainer.notes["run"]).items():
        if name in DATA or getattr(args, name) is None:
            setattr(args, name, value)
    return trainer


def _offer(folder: Path, out: str) -> str:
    """Return what to do if the training in a folder cannot be read."""
    found = newest_whole(folder)
    if found is None:
        return ""
    return (
        f"; the newest whole checkpoint is {found}: go on from it with "
        f"rustgpt train --resume {found} --out {out}"
    )


def _check_flags(args: argparse.Namespace, trainer: Trainer, folder: str) -> None:
    """Raise ConfigError if a flag, or a setting in a file, is another than the training's."""
    for name in DATA:
        value = getattr(args, name, None)
        if value and _whole(name, value) != trainer.notes["data"][name]:
            _refuse(name, value, trainer.notes["data"][name], folder)
    model, train = given_settings(args)
    own: tuple[tuple[ModelConfig | TrainConfig, dict[str, Any]], ...] = (
        (trainer.model.config, model),
        (trainer.config, train),
    )
    for config, given in own:
        for name, value in given.items():
            if name != "threads" and value != getattr(config, name):
                _refuse(name, value, getattr(config, name), folder)


def _refuse(name: str, value: Any, own: Any, folder: str) -> None:
    given, own = (" ".join(v) if isinstance(v, list) else v for v in (value, own))
    flag = "PATH" if name == "paths" else f"--{name.replace('_', '-')}"
    raise ConfigError(
        f"{flag} {given} contradicts the training in {folder}, which has {own or 'none'}: leave it "
        "out, or begin another training"
    )


def _tell_of_other_bits(trainer: Trainer) -> None:
    """Say what makes the result differ in its last bits from that without an interruption."""
    now = _machine(trainer)
    before = {"processes": 1, **trainer.notes}
    changes = [
        f"the {name} were {before[name]} and are now {value}"
        for name, value in now.items()
        if before[name] != value
    ]
    if changes:
        note(f"rustgpt: {', '.join(changes)}: the last bits of the result will be others")
    trainer.notes.update(now)


def _machine(trainer: Trainer) -> dict[str, Any]:
    """Return what the last bits of a training depend on beside its settings."""
    from rustgpt.backend import kernels_in_use
    from rustgpt.parallel.pool import available_threads

    return {
        "threads": trainer.config.threads or available_threads(),
        "kernels": kernels_in_use(),
        "processes": trainer.exchange.size,
    }


def check_data(trainer: Trainer, dataset: Dataset, old: Sequence[str], folder: str) -> None:
    """Raise DataError unless the data are those with which a training began."""
    for kind, digest in digests(dataset, old).items():
        if digest != trainer.notes["sha256"][kind]:
            data = trainer.notes["data"]
            names = data[kind] or data["paths"] or ["the bundled ones"]
            if kind == "replay":
                names = ["what is learned again"]
            raise DataError(
                f"the data of the training in {folder} have changed since it began "
                f"({', '.join(names)}): put them back as they "
                f"were, or train on from its model with --init {folder}"
            )


def is_complete(trainer: Trainer) -> bool:
    """Whether a training has made all its phases."""
    return bool(trainer.state.phases_done >= trainer.notes["phases"])


def describe(trainer: Trainer) -> str:
    """Return where a training goes on."""
    state = trainer.state
    if state.complete:
        return f"after the {state.phase}" if state.phase else "at its beginning"
    return f"with the {state.phase}, after step {state.step:,}, in epoch {state.epoch + 1:,}"
