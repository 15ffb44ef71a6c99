"""Owns the settings of model and training: their flags and their file in TOML."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Final, TypeVar, get_type_hints

from rustgpt.cli.options import Once, number, path, whole_number
from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError

TABLES: Final = {"model": ModelConfig, "train": TrainConfig}
READERS: Final[dict[type, tuple[Callable[[str], Any], str]]] = {
    int: (whole_number, "N"),
    float: (number, "X"),
    str: (str, "NAME"),
}

Config = TypeVar("Config", ModelConfig, TrainConfig)


def add_settings(
    parser: argparse.ArgumentParser, of_training: Collection[str] | None = None
) -> None:
    """Add `--config`, and a flag for every field of the configurations.

    Parameters
    ----------
    of_training
        The fields of `TrainConfig` that have one; by default all.
    """
    parser.add_argument(
        "--config",
        type=path,
        action=Once,
        metavar="FILE",
        help="settings in TOML: tables [model] and [train] with the names of the flags below, "
        "with _ for -; flags win over the file",
    )
    for table, kind in TABLES.items():
        group = parser.add_argument_group(f"settings, table [{table}]")
        descriptions, types = _descriptions(kind), get_type_hints(kind)
        for field in dataclasses.fields(kind):
            left_out = kind is TrainConfig and of_training and field.name not in of_training
            if field.name != "seed" and not left_out:  # both have a seed
                _add_setting(group, field, types[field.name], descriptions[field.name])
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=argparse.SUPPRESS,
        metavar="N",
        help="of the initial parameters, of the order of the texts and of the answers "
        f"(default: {TrainConfig.seed})",
    )


def _add_setting(
    group: argparse._ArgumentGroup, field: dataclasses.Field[Any], kind: type, description: str
) -> None:
    """Add a field's flag. Without the flag there is no attribute, so that a file can decide."""
    flag = "--" + field.name.replace("_", "-")
    value: Any = field.default
    default = ("no", "yes")[value] if kind is bool else value
    text = f"{description} (default: {default})".replace("%", "%%")
    left_out = argparse.SUPPRESS
    if kind is bool:
        action = argparse.BooleanOptionalAction
        group.add_argument(flag, action=action, default=left_out, help=text)
    else:
        read, metavar = READERS[kind]
        group.add_argument(flag, type=read, default=left_out, metavar=metavar, help=text)


def _descriptions(kind: type) -> dict[str, str]:
    """Return what the docstring of a configuration says about its fields."""
    found = dict.fromkeys((field.name for field in dataclasses.fields(kind)), "")
    section = (inspect.getdoc(kind) or "").partition("Parameters\n----------\n")[2]
    for name, text in re.findall(r"^(\w+)\n((?: +\S.*\n?)+)", section, re.MULTILINE):
        found[name] = " ".join(text.split()).replace("`", "").removesuffix(".")
    return found


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
