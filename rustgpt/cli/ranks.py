"""Owns what the processes of one command under MPI have in common: which tells, what all know,
and that all leave together."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rustgpt.cli.terminal import complain_after_all, note, silence
from rustgpt.errors import ConfigError
from rustgpt.parallel import mpi

if TYPE_CHECKING:
    from rustgpt.folder_lock import FolderLock
    from rustgpt.parallel.exchange import Exchange
    from rustgpt.text.dataset import Dataset
    from rustgpt.trainer import Trainer

COMMANDS: Final = ("train", "info")  # that several processes may run together
TIME_TO_TELL: Final = 1.0  # seconds in which the first process says what is wrong with a command


@dataclass
class Prepared:
    """A training before its first step, with what the command knows of it."""

    trainer: Trainer
    dataset: Dataset | None = None  # None of a training that is complete
    question: str = ""
    folder: FolderLock | None = None  # for the model


def begin(command: str, asks: bool) -> None:
    """Let the first of several processes tell alone; `asks` if only help is asked for.

    Raises
    ------
    ConfigError
        If the command is for one process.
    """
    if mpi.launched_rank():
        silence()
    if mpi.launched_size() > 1 and command not in COMMANDS and not asks:
        instead = ": use 'rustgpt train', and 'rustgpt chat' afterwards" if not command else ""
        raise ConfigError(
            f"rustgpt {command}".rstrip() + f" is for one process: leave out mpiexec{instead}"
        )


def leave(status: int) -> int:
    """Return the exit status of all processes, when all have come to their end.

    If some do not come, because they wait for one that has failed, they are ended.
    """
    exchange = mpi.joined()
    if exchange is None:
        if status and mpi.launched_rank():
            time.sleep(TIME_TO_TELL)  # the launcher ends all at once
        return status
    found = exchange.leave(status)
    if status and (found is None or not found[0]):
        complain_after_all()
    if found is None:
        exchange.abort(status)
        return status
    return max(found)


def prepared(
    args: argparse.Namespace, exchange: Exchange, work: Callable[[], Prepared]
) -> Prepared:
    """Return what work() returns on the first process, which does it and tells the others.

    It may change `args`, which are then the same everywhere.
    """
    if exchange.size == 1:
        return work()
    threads = getattr(args, "threads", 0)  # 0 for each one's share
    own: list[Prepared] = []

    def do() -> tuple[Any, ...]:
        own.append(work())
        trainer = own[0].trainer
        return (
            trainer.model.config, trainer.model.tokenizer,
            dataclasses.replace(trainer.config, threads=threads), trainer.progress(),
            own[0].dataset, own[0].question, vars(args),
        )  # fmt: skip

    model, tokenizer, config, progress, *more = exchange.from_first("prepare", do)
    if own:
        _tell_of(exchange)
        return own[0]
    from rustgpt.folder_lock import FolderLock
    from rustgpt.llm import LLM
    from rustgpt.trainer import Trainer

    dataset, question, given = more
    vars(args).update(given)
    trainer = Trainer(LLM(model, tokenizer), config, exchange=exchange)
    trainer.take_over(progress)
    return Prepared(trainer, dataset, question, FolderLock(args.out))


def _tell_of(exchange: Exchange) -> None:
    """Tell which process is which, so that messages of the system can be understood."""
    for rank in range(exchange.size):
        note(f"rustgpt: {exchange.name(rank)}")
    used, there = exchange.processors()
    if used < there:
        note(
            f"rustgpt: mpiexec has bound the processes to {used} of the {there} processors here: "
            "with --bind-to none they use all"
        )
    if mpi.launched_by_open_mpi():
        note(
            f"rustgpt: to stop, send SIGTERM to rank 0 (kill {os.getpid()}), and the model is "
            "saved: after Ctrl-C Open MPI leaves the processes a quarter of a second"
        )
