"""Owns `--init`: training on from a finished model, its vocabulary, and what it learns again."""

from __future__ import annotations

import argparse
import os
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

from rustgpt.cli.data import read_data
from rustgpt.cli.options import add_path, add_template, number
from rustgpt.cli.settings import given_settings
from rustgpt.cli.terminal import Reading, note
from rustgpt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rustgpt.llm import LLM
    from rustgpt.text.dataset import Dataset
    from rustgpt.trainer import Trainer

ARGUMENTS: Final = ("init", "extend_vocab", "replay", "template")
PRETRAINING: Final = "pre-training"
TUNING: Final = "instruction tuning"


def add_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags that belong to `--init`."""
    text = "train on from a finished model, with its sizes and its tokenizer, on new data"
    add_path(group, "--init", "MODEL", text)
    group.add_argument(
        "--extend-vocab",
        action="store_true",
        default=None,
        help="with --init: give new words tokens of their own instead of spelling them in pieces",
    )
    add_template(group)
    group.add_argument(
        "--replay",
        nargs="+",
        metavar=("SHARE", "PATH"),
        help="with --init: this share of the texts, such as 0.8, are old ones, so that the model "
        "does not forget them: those of PATH, or those that it was trained on",
    )


def check(args: argparse.Namespace) -> None:
    """Raise ConfigError if a flag needs another one, or contradicts one."""
    if args.init is None:
        for name in ("extend_vocab", "replay", "template"):
            if getattr(args, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} belongs to --init MODEL, which trains on from a "
                    "finished model: give both or neither"
                )
        return
    if not (getattr(args, "paths", None) or args.pretrain or args.chat or args.language):
        behind = ", before --replay, which takes what follows it for old data" * bool(args.replay)
        raise ConfigError(f"--init trains on new data: name them{behind}")
    for name in ("tokenizer", "vocab_size"):
        if getattr(args, name) is not None:
            raise ConfigError(
                f"the model of --init has its tokenizer: leave out --{name.replace('_', '-')}"
            )
    if args.replay:
        share(args)
        if hasattr(args, "tune_replay"):
            raise ConfigError(
                "--replay says which old texts are learned again in both phases, --tune-replay how "
                "many of the new statements: leave one of them out"
            )


def share(args: argparse.Namespace) -> float:
    """Return the share of old texts."""
    try:
        found = number(args.replay[0])
    except argparse.ArgumentTypeError:
        found = -1.0
    if not 0 <= found < 1 or len(args.replay) > 2:
        raise ConfigError(
            "--replay takes a share from 0 to below 1 and at most one path, got "
            f"{' '.join(args.replay)!r:.60}"
        )
    return found


def initial_model(args: argparse.Namespace, dataset: Dataset) -> LLM:
    """Return the model of `--init`, with tokens for new words if these are asked for.

    Raises
    ------
    ConfigError
        If a flag asks for another model than it is.
    """
    from rustgpt.llm import LLM

    model = LLM.load(args.init, chat_template=args.template)
    for name, value in given_settings(args)[0].items():
        own = getattr(model.config, name)
        if name != "seed" and value != own:
            raise ConfigError(
                f"--{name.replace('_', '-')} {value} contradicts the model in {args.init}, which "
                f"has {own}: leave it out"
            )
    if not args.extend_vocab:
        return model
    before = model.tokenizer.vocab_size
    model = model.extend_vocab(chain(dataset.pretraining_data, dataset.chat_training_data))
    note(f"rustgpt: {model.tokenizer.vocab_size - before:,} new words in the vocabulary")
    return model


def note_origin(trainer: Trainer, args: argparse.Namespace) -> None:
    """Note with a training what its initial model was trained on, and what is learned again."""
    from rustgpt import checkpoint, formats
    from rustgpt.training_record import RECORD, TrainingRecord

    if args.init is None:
        return
    notes: dict[str, Any] = {}
    if formats.kind_of(args.init) == formats.RUSTGPT:
        with checkpoint.load(args.init) as saved:
            notes = TrainingRecord.read(saved).notes if RECORD in saved else {}
    before = [*notes.get("before", []), *([notes["data"]] if "data" in notes else [])]
    if args.replay and len(args.replay) > 1:
        before = [{"path": os.path.abspath(args.replay[1])}]
    if args.replay and not before:
        raise ConfigError(
            f"it is not known what the model in {args.init} was trained on: name its data, "
            f"--replay {args.replay[0]} PATH"
        )
    if not args.replay:
        note(
            "rustgpt: the model may forget what it knew: with --replay 0.8, four of five texts are "
            "old ones"
        )
    trainer.notes["before"] = before


def replay(trainer: Trainer, args: argparse.Namespace, dataset: Dataset) -> Sequence[str]:
    """Have a trainer learn old texts again; return all of them.

    Each phase learns those of its own kind; a pre-training alone learns the dialogues too.
    """
    from rustgpt.replay import Replay

    if not args.replay:
        return []
    old = [_read(source, args) for source in trainer.notes["before"]]
    statements = _joined([data.pretraining_data for data in old])
    dialogues = _joined([data.chat_training_data for data in old])
    alone = not (dataset.pretraining_data and dataset.chat_training_data)
    both = _joined([dialogues, statements])
    trainer.replay = {
        PRETRAINING: Replay(both if alone else statements, share(args)),
        TUNING: Replay(dialogues or statements, share(args)),
    }
    return both


def _joined(lists: list[Sequence[str]]) -> Sequence[str]:
    """Return all texts of some lists; of one alone the list itself, which may be stored."""
    lists = [texts for texts in lists if texts]
    return lists[0] if len(lists) == 1 else [*chain(*lists)]


def _read(source: dict[str, Any], args: argparse.Namespace) -> Dataset:
    """Read data that were noted with a training."""
    from rustgpt.text.dataset import Dataset

    if "path" in source:
        return Dataset.load(source["path"], cache=args.cache, on_progress=Reading())
    return read_data(argparse.Namespace(**source, cache=args.cache))
