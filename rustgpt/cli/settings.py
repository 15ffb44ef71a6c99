"""Owns the settings of model and training: their flags and their file in TOML."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from rustgpt.cli.options import METAVARS, add_path, number, whole_number
from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError

TABLES: Final = {"model": ModelConfig, "train": TrainConfig}


def add_settings(parser: argparse.ArgumentParser, of_training: Collection[str] = ()) -> None:
    """Add `--config` and a flag for each setting; of a training, for all or those named."""
    add_path(
        parser,
        "--config",
        "FILE",
        "settings in TOML: tables [model] and [train] with the names of the flags below, "
        "with _ for -; flags win over the file",
    )
    for table, kind in TABLES.items():
        group = parser.add_argument_group(f"settings, table [{table}]")
        descriptions = _descriptions(kind)
        for field in dataclasses.fields(kind):
            left_out = kind is TrainConfig and of_training and field.name not in of_training
            if field.name != "seed" and not left_out:  # both have a seed
                _add_setting(group, field, descriptions[field.name])
    seed = TrainConfig.__dataclass_fields__["seed"]
    text = "of the initial parameters, of the order of the texts and of the answers"
    _add_setting(parser, seed, text)


def _add_setting(
    group: argparse._ActionsContainer, field: dataclasses.Field[Any], description: str
) -> None:
    """Add a field's flag. Without the flag there is no attribute, so that a file can decide."""
    default: Any = field.default
    kind = type(default)
    more: dict[str, Any]
    if kind is bool:
        default, more = ("no", "yes")[default], {"action": argparse.BooleanOptionalAction}
    else:
        read = {int: whole_number, float: number, str: str}[kind]
        more = {"type": read, "metavar": METAVARS[read]}
    text = f"{description} (default: {default})".replace("%", "%%")
    flag = "--" + field.name.replace("_", "-")
    group.add_argument(flag, default=argparse.SUPPRESS, help=text, **more)


def _descriptions(kind: type) -> dict[str, str]:
    """Return what the docstring of a configuration says about its fields."""
    found = {}
    section = (inspect.getdoc(kind) or "").partition("Parameters\n----------\n")[2]
    for name, text in re.findall(r"^(\w+)\n((?: +\S.*\n?)+)", section, re.MULTILINE):
        found[name] = " ".join(text.split()).replace("`", "").removesuffix(".")
    return found


def read_settings(args: argparse.Namespace) -> tuple[ModelConfig, TrainConfig]:
    """Return the configurations, or raise ConfigError: defaults, then the file, then the flags."""
    tables = _read_file(args.config) if args.config else {}
    model, train = (_build(kind, table, tables, args) for table, kind in TABLES.items())
    return model, train


def _build(kind: Any, table: str, tables: dict[str, Any], args: argparse.Namespace) -> Any:
    values, names = tables.get(table, {}), [field.name for field in dataclasses.fields(kind)]
    flags = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        return kind.from_dict({**values, **flags})
    except ConfigError as error:
        culprit = str(error).split()[0]  # the field; of an unknown one, the configuration
        if culprit in flags or culprit not in (*values, kind.__name__):
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
    return tables
