"""Owns the settings of model and training: their flags and their file in TOML."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from rustgpt.cli.options import METAVARS, add_path, duration, likely_flags, number, whole_number
from rustgpt.config import ModelConfig, TrainConfig, kind_of
from rustgpt.errors import ConfigError
from rustgpt.presets import PRESETS

TABLES: Final = {"model": ModelConfig, "train": TrainConfig}
# Unless given, the data decide.
BY_DATA: Final = (
    "validation_share", "tune_validation_share", "patience", "pretrain_epochs", "pretrain_rate",
    "tune_epochs", "tune_rate", "batch_size", "warmup_steps", "final_rate",
)  # fmt: skip


def add_settings(parser: argparse.ArgumentParser, of_training: Collection[str] = ()) -> None:
    """Add `--config` and a flag for each setting; of a training, for all or those named."""
    add_path(
        parser,
        "--config",
        "FILE",
        "settings in TOML: tables [model] and [train] with the names of the flags below, "
        "with _ for -; flags win over the file",
    )
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        metavar="NAME",
        help=f"a model's shape by its name, one of {', '.join(PRESETS)}; settings that are given "
        "beside it win",
    )
    for table, kind in TABLES.items():
        group = parser.add_argument_group(f"settings, table [{table}]")
        texts = descriptions(kind)
        for field in dataclasses.fields(kind):
            left_out = kind is TrainConfig and of_training and field.name not in of_training
            left_out = left_out or "of_tokenizer" in field.metadata
            if field.name != "seed" and not left_out:  # both have a seed
                _add_setting(group, field, texts[field.name])
    seed = TrainConfig.__dataclass_fields__["seed"]
    text = "of the initial parameters, of the order of the texts and of the answers"
    _add_setting(parser, seed, text)


def _add_setting(
    group: argparse._ActionsContainer, field: dataclasses.Field[Any], description: str
) -> None:
    """Add a field's flag. Without the flag there is no attribute, so that a file can decide."""
    default: Any = field.default
    kind = kind_of(field)
    more: dict[str, Any]
    if kind is bool:
        default, more = ("no", "yes")[default], {"action": argparse.BooleanOptionalAction}
    else:
        read: Any = {int: whole_number, float: number, str: str}[kind]
        read = duration if "time" in field.metadata else read
        more = {"type": read, "metavar": METAVARS[read]}
    told = default is None or "by default" in description
    text = (description if told else f"{description} (default: {default})").replace("%", "%%")
    flag = "--" + field.name.replace("_", "-")
    group.add_argument(flag, default=argparse.SUPPRESS, help=text, **more)


def descriptions(kind: type) -> dict[str, str]:
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


def given_settings(args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings that flags, the file of `--config` and `--preset` name, as they are."""
    tables = _read_file(args.config) if args.config else {}

    def given(table: str, config: ModelConfig | TrainConfig) -> dict[str, Any]:
        values = config.to_dict()
        named = {*tables.get(table, {}), *_preset(table, args)}
        return {k: v for k, v in values.items() if k in named or hasattr(args, k)}

    model, train = read_settings(args)
    return given("model", model), given("train", train)


def to_toml(args: argparse.Namespace) -> str:
    """Return all settings as a file that `--config` reads back."""
    lines = []
    for (table, config), given in zip(
        zip(TABLES, read_settings(args), strict=True), given_settings(args), strict=True
    ):
        lines.append(f"[{table}]")
        for name, value in config.to_dict().items():
            if name in BY_DATA and name not in given:
                lines.append(f"# {name}: the data decide")
            else:
                lines.append(f"{name} = {json.dumps(value).replace('Infinity', 'inf')}")
        lines.append("")
    return "\n".join(lines)


def _build(kind: Any, table: str, tables: dict[str, Any], args: argparse.Namespace) -> Any:
    values, names = tables.get(table, {}), [field.name for field in dataclasses.fields(kind)]
    flags = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        values = {**values, **_times(kind, values)}
        return kind.from_dict({**_preset(table, args), **values, **flags})
    except ConfigError as error:
        culprit = str(error).split()[0]  # the field; of an unknown one, the configuration
        if culprit in flags or culprit not in (*values, kind.__name__):
            raise
        raise ConfigError(f"{args.config!r}, [{table}]: {error}") from None


def _preset(table: str, args: argparse.Namespace) -> dict[str, Any]:
    """Return what `--preset` says of the settings in a table."""
    return PRESETS[args.preset] if table == "model" and getattr(args, "preset", None) else {}


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
        for key in values:
            if key not in _names(table):
                raise ConfigError(
                    f"{file!r} has an unknown key {key!r:.60} in [{table}]{_likely(key, table)}"
                )
    return tables


def _times(kind: Any, values: dict[str, Any]) -> dict[str, float]:
    """Return the times in a table that are written as text, "10m" say, in seconds."""
    found = {}
    for field in dataclasses.fields(kind):
        value = values.get(field.name)
        if "time" in field.metadata and isinstance(value, str):
            try:
                found[field.name] = duration(value)
            except argparse.ArgumentTypeError as error:
                raise ConfigError(f"{field.name} must be a time: {error}") from None
    return found


def _names(table: str) -> list[str]:
    return [field.name for field in dataclasses.fields(TABLES[table])]


def _likely(key: str, table: str) -> str:
    """Return what somebody may have meant by a key that a table does not know."""
    for other in TABLES:
        if key in _names(other):
            return f": it belongs into [{other}]"
    flags = [f"--{name.replace('_', '-')}" for name in _names(table)]
    meant = likely_flags(f"--{key}", flags).replace("--", "").replace("-", "_")
    return f": did you mean {meant}?" if meant else f", which knows {', '.join(_names(table))}"
