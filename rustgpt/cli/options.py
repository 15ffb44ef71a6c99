"""Owns how the values of flags are read, and the flags that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, Final

from rustgpt.config import CHAT_TEMPLATES

LONGEST_TIME: Final = 31 * 86_400  # seconds
UNITS: Final = {"s": 1, "m": 60, "h": 3600}


def number(text: str, kind: Callable[[str], float] = float, wanted: str = "a number") -> float:
    """Read a flag's number."""
    try:
        return kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{wanted} is needed, not {text!r:.60}") from None


def whole_number(text: str) -> float:
    """Read a flag's whole number."""
    return number(text, int, "a whole number")


def duration(text: str) -> float:
    """Read a time, such as "90", "90s", "5m" or "1.5h", as a number of seconds."""
    unit = UNITS.get(text[-1:], 0)
    return number(text[:-1] if unit else text) * (unit or 1)


def path(text: str) -> str:
    """Read the name of a file or folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"a file or folder is needed, not {text!r:.60}")
    return text


# How the help calls the values that these read.
METAVARS: Final = {whole_number: "N", number: "X", duration: "TIME", str: "NAME"}


def add_number(
    group: argparse._ActionsContainer,
    flag: str,
    limits: tuple[float, float],
    text: str,
    default: Any = None,
    read: Callable[[str], float] = whole_number,
) -> None:
    """Add a flag for a number within limits, the upper of which may be infinite."""
    lowest, highest = limits

    def within(text: str) -> float:
        value = read(text)
        if not lowest <= value <= highest or value == math.inf:
            range_ = f"at least {lowest}" if highest == math.inf else f"from {lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"must be {range_}, got {text!r:.60}")
        return value

    group.add_argument(flag, type=within, default=default, metavar=METAVARS[read], help=text)


def add_path(
    group: argparse._ActionsContainer, flag: str, metavar: str, text: str, default: Any = None
) -> None:
    """Add a flag for a file or folder, to be given once: of two, neither is dropped unseen."""
    given = []

    def once(text: str) -> str:
        if text is not default:  # which argparse reads too
            given.append(text)
        if len(given) > 1:
            raise argparse.ArgumentTypeError("may be given once only")
        return path(text)

    group.add_argument(flag, type=once, default=default, metavar=metavar, help=text)


A_MODEL: Final = "a model's folder, of rustgpt or of Hugging Face"


def add_model(parser: argparse.ArgumentParser, text: str = A_MODEL, **more: Any) -> None:
    """Add the argument that names a saved model."""
    parser.add_argument("model", type=path, metavar="MODEL", help=text, **more)


def add_template(group: argparse._ActionsContainer) -> None:
    """Add the flag that names the form of a model's dialogues."""
    text = f"the form of dialogues, instead of the model's own: {', '.join(CHAT_TEMPLATES[:-1])}"
    group.add_argument(
        "--template", choices=CHAT_TEMPLATES[:-1], metavar="NAME",
        help=text,
    )  # fmt: skip


# What other programs call a flag of ours, or what comes nearest to one that there is not.
OTHER_NAMES: Final = {
    "--pretrain-rate": "lr learning-rate",
    "--tune-rate": "lr learning-rate",
    "--pretrain-epochs": "epochs num-epochs",
    "--tune-epochs": "epochs num-epochs",
    "--n-layers": "n-layer num-layers layers depth",
    "--n-heads": "n-head num-heads heads",
    "--embedding-dim": "n-embd d-model dim hidden-size",
    "--hidden-dim": "d-ff",
    "--max-seq-len": "block-size context seq-len",
    "--batch-size": "batch",
    "--weight-decay": "wd",
    "--dropout": "dropout-rate drop",
    "--max-grad-norm": "grad-clip clip",
    "--warmup-steps": "warmup",
    "--threads": "num-threads workers",
    "--out": "output output-dir",
    "--pretrain": "data train",
    "--chat": "data train",
    "--overwrite": "force",
    "--max-new-tokens": "max-tokens max-length num-tokens",
    "--temperature": "temp",
    "--n": "num-return-sequences samples best-of",
    "--num-beams": "beams beam-size",
    "--stop": "stop-sequence eos",
    "--repetition-penalty": "repeat-penalty",
    "--no-repeat-ngram": "no-repeat-ngram-size",
    "--json-schema": "schema grammar guided-json",
    "--choice": "choices guided-choice",
    "--template": "chat-template",
}


def likely_flags(text: str, known: Collection[str]) -> str:
    """Return which of the known flags somebody may have meant; "" if none is likely."""
    if not text.startswith("-"):
        return ""
    name = text.lstrip("-").partition("=")[0].replace("_", "-").lower()
    found = [flag for flag, other in OTHER_NAMES.items() if name in other.split()]
    found = [flag for flag in found if flag in known]
    return " or ".join(found or get_close_matches(f"--{name}", known, n=2, cutoff=0.7))
