"""Owns how the values of flags are read, and the flags that several commands share."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Final

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


def duration(text: str) -> float:
    """Read a number of seconds."""
    value = number(text)
    if not 0 < value <= 86_400:
        raise argparse.ArgumentTypeError(f"must be above 0 and at most 86400, got {text!r:.60}")
    return value


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
