"""Owns the options: those made from the fields of the configurations, and the file of settings."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import math
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError

TABLES: Final = {"model": ModelConfig, "train": TrainConfig}
METAVARS: Final = {int: "N", float: "X", str: "NAME"}
LARGEST_SEED: Final = 2**63 - 1

# Of fields that the docstring of a configuration explains together.
TOGETHER: Final = {
    "attention_bias": "Whether the products of the attention have a bias",
    "output_bias": "Whether the output projection has a bias",
    "pretrain_epochs": "Passes over the statements",
    "pretrain_rate": "The learning rate at the start of pre-training",
    "tune_epochs": "Passes over the dialogues",
    "tune_rate": "The learning rate at the start of instruction tuning",
    "beta1": "Of Adam: how slowly its mean of the gradients changes",
    "beta2": "Of Adam: how slowly its mean of their squares changes",
}

Config = TypeVar("Config", ModelConfig, TrainConfig)


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


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add `--config`, and a flag for every field of the configurations."""
    parser.add_argument(
        "--config",
        type=path,
        metavar="FILE",
        help="settings in TOML: tables [model] and [train] with the names of the flags below, "
        "with _ for -; flags win over the file",
    )
    for table, kind in TABLES.items():
        group = parser.add_argument_group(f"settings, table [{table}]")
        descriptions, types = _descriptions(kind), get_type_hints(kind)
        for field in dataclasses.fields(kind):
            if field.name == "seed":
                continue
            flag = "--" + field.name.replace("_", "-")
            default = {True: "yes", False: "no"}.get(field.default, field.default)
            text = f"{descriptions[field.name]} (default: {default})".replace("%", "%%")
            if types[field.name] is bool:
                group.add_argument(
                    flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text
                )
            else:
                group.add_argument(
                    flag,
                    type={int: whole_number, float: number, str: str}[types[field.name]],
                    default=argparse.SUPPRESS,
                    metavar=METAVARS[types[field.name]],
                    help=text,
                )
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=argparse.SUPPRESS,
        metavar="N",
        help="of the initial parameters, of the order of the texts and of the answers "
        f"(default: {TrainConfig.seed})",
    )


def _descriptions(kind: type) -> dict[str, str]:
    """Return what the docstring of a configuration says about its fields."""
    found = dict.fromkeys((field.name for field in dataclasses.fields(kind)), "")
    section = (inspect.getdoc(kind) or "").partition("Parameters\n----------\n")[2]
    for names, text in re.findall(r"^(\w[\w, ]*)\n((?: +\S.*\n?)+)", section, re.MULTILINE):
        plain = " ".join(text.split()).replace("`", "").removesuffix(".")
        found.update(dict.fromkeys(names.split(", "), plain))
    return found | {name: text for name, text in TOGETHER.items() if name in found}


def read_settings(args: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    """Return the configurations: defaults, then the file of `--config`, then the flags.

    Raises
    ------
    ConfigError
        If the file cannot be read, or a setting is unknown or out of range.
    """
    file = args.config
    tables = _read_file(file) if file else {}
    return (
        _build(ModelConfig, "model", tables.get("model", {}), args),
        _build(TrainConfig, "train", tables.get("train", {}), args),
    )


def _build(
    kind: type[Config], table: str, values: dict[str, Any], args: argparse.Namespace
) -> Config:
    names = [field.name for field in dataclasses.fields(kind)]
    flags = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        return kind.from_dict({**values, **flags})
    except ConfigError as error:
        culprit = str(error).split()[0]
        if culprit in flags or culprit not in values:
            raise
        raise ConfigError(f"{args.config!r}, [{table}]: {error}") from None


def _read_file(file: str) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(Path(file).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read {file!r}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise ConfigError(f"{file!r} is not TOML: {error}") from None
    for table, values in tables.items():
        if table not in TABLES or not isinstance(values, dict):
            raise ConfigError(
                f"{file!r} has {table!r} where only the tables [model] and [train] may be"
            )
        known = [field.name for field in dataclasses.fields(TABLES[table])]
        for key in values:
            if key not in known:
                raise ConfigError(
                    f"{file!r} has an unknown key {key!r} in [{table}], which knows "
                    f"{', '.join(known)}"
                )
    return tables
