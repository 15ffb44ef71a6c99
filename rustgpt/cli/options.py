"""Owns how the values of flags are read, and the flags that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, Final

LARGEST_SEED: Final = 2**63 - 1


def whole_number(text: str) -> int:
    """Read a flag's whole number."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a whole number is needed, not {text!r:.60}") from None


def number(text: str) -> float:
    """Read a flag's number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"a number is needed, not {text!r:.60}") from None


def path(text: str) -> str:
    """Read the name of a file or folder."""
    if not text.strip() or "\0" in text:
        raise argparse.ArgumentTypeError(f"a file or folder is needed, not {text!r:.60}")
    return text


def within(lowest: int, highest: int) -> Callable[[str], int]:
    """Return a reader of whole numbers in a range."""

    def read(text: str) -> int:
        value = whole_number(text)
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(
                f"must be from {lowest} to {highest}, got {text!r:.60}"
            )
        return value

    return read


# What other programs call a flag of ours, or what comes nearest to one that there is not.
OTHER_NAMES: Final = {
    "lr": ("pretrain-rate", "tune-rate"),
    "learning-rate": ("pretrain-rate", "tune-rate"),
    "epochs": ("pretrain-epochs", "tune-epochs"),
    "num-epochs": ("pretrain-epochs", "tune-epochs"),
    "n-layer": ("n-layers",),
    "num-layers": ("n-layers",),
    "layers": ("n-layers",),
    "depth": ("n-layers",),
    "n-head": ("n-heads",),
    "num-heads": ("n-heads",),
    "heads": ("n-heads",),
    "n-embd": ("embedding-dim",),
    "d-model": ("embedding-dim",),
    "dim": ("embedding-dim",),
    "hidden-size": ("embedding-dim",),
    "d-ff": ("hidden-dim",),
    "block-size": ("max-seq-len",),
    "context": ("max-seq-len",),
    "seq-len": ("max-seq-len",),
    "batch": ("batch-size",),
    "dropout": ("weight-decay",),
    "wd": ("weight-decay",),
    "grad-clip": ("max-grad-norm",),
    "clip": ("max-grad-norm",),
    "warmup": ("warmup-steps",),
    "num-threads": ("threads",),
    "workers": ("threads",),
    "output": ("out",),
    "output-dir": ("out",),
    "data": ("pretrain", "chat"),
    "train": ("pretrain", "chat"),
    "force": ("overwrite",),
    "max-tokens": ("max-new-tokens",),
    "max-length": ("max-new-tokens",),
    "num-tokens": ("max-new-tokens",),
    "temp": ("temperature",),
}


def likely_flags(text: str, known: Collection[str]) -> str:
    """Return which of the known flags somebody may have meant; "" if none is likely."""
    if not text.startswith("-"):
        return ""
    name = text.lstrip("-").partition("=")[0].replace("_", "-").lower()
    found = [flag for other in OTHER_NAMES.get(name, ()) if (flag := f"--{other}") in known]
    if not found:
        found = get_close_matches(f"--{name}", known, n=2, cutoff=0.7)
    return " or ".join(found)


UNITS: Final = {"s": 1, "m": 60, "h": 3600}


def duration(text: str) -> float:
    """Read a time, such as "90", "90s", "5m" or "1.5h", as a number of seconds."""
    unit = UNITS.get(text[-1:], 0)
    seconds = number(text[:-1] if unit else text) * (unit or 1)
    if not 0 <= seconds <= 31 * 86_400:
        raise argparse.ArgumentTypeError(f"must be from 0 seconds to 31 days, got {text!r:.60}")
    return seconds


def some_time(text: str) -> float:
    """Read a time above 0."""
    seconds = duration(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text!r:.60}")
    return seconds


class Once(argparse.Action):
    """Takes the value of a flag that may be given once: of two files, neither is dropped unseen."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given: set[str] = vars(namespace).setdefault("_given", set())
        if self.dest in given:
            parser.error(f"{option_string} may be given once only")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def temperature(text: str) -> float:
    """Read a temperature."""
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(
            f"must be 0 (always the likeliest token) or above, got {text!r:.60}"
        )
    return value


def add_sampling(parser: argparse.ArgumentParser, seed: bool = True) -> None:
    """Add what chooses the words of an answer."""
    group = parser.add_argument_group("answers")
    group.add_argument(
        "--temperature",
        type=temperature,
        default=0.0,
        metavar="X",
        help="0 for the likeliest token each time; higher is more varied (default: %(default)s)",
    )
    group.add_argument(
        "--max-new-tokens",
        type=within(1, 10**6),
        default=60,
        metavar="N",
        help="the most tokens of an answer (default: %(default)s)",
    )
    if seed:
        group.add_argument(
            "--seed",
            type=within(0, LARGEST_SEED),
            default=0,
            metavar="N",
            help="the same seed gives the same text (default: %(default)s)",
        )
