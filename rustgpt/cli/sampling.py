"""Owns the settings of texts that are made, as flags and as what is typed in a chat."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, Final

from rustgpt.cli.options import add_number, number, path, whole_number
from rustgpt.cli.settings import descriptions
from rustgpt.config import kind_of
from rustgpt.errors import ConfigError, check_integer
from rustgpt.generation.sampling_config import SamplingConfig

LIMITS: Final = {"max_new_tokens": (1, 10**6)}  # where a flag's are not those of the setting
NUMBERS: Final = {s.name: s for s in fields(SamplingConfig) if "limits" in s.metadata}
OTHERS: Final = ("stop", "choices", "json_schema")
NARROWING: Final = ("top_k", "top_p", "min_p")
NOT_OF_A_CHAT: Final = ("n", "logprobs")


def add_sampling(parser: argparse.ArgumentParser, left_out: Collection[str] = ()) -> None:
    """Add what chooses the words of an answer, but for the settings that are left out.

    A flag that is not given leaves no attribute.
    """
    group = parser.add_argument_group("answers")
    texts = descriptions(SamplingConfig)
    for name, setting in NUMBERS.items():
        if name not in left_out:
            told = "" if setting.default is None else f" (default: {setting.default})"
            limits = LIMITS.get(name, setting.metadata["limits"][:2])
            flag, text = "--" + name.replace("_", "-"), texts[name] + told
            add_number(group, flag, limits, text, argparse.SUPPRESS, _reader(setting))
    more: dict[str, Any] = {"default": argparse.SUPPRESS}
    texts_of: dict[str, Any] = {**more, "action": "append", "metavar": "TEXT", "type": _some_text}
    text = "a text before which the answer ends; may be given several times"
    group.add_argument("--stop", help=text, **texts_of)
    text = "one of several texts of which the answer must be one"
    group.add_argument("--choice", dest="choices", help=text, **texts_of)
    text = "a JSON schema that the answer follows, or a file that holds it"
    group.add_argument("--json-schema", type=_schema, metavar="JSON", help=text, **more)


def _reader(setting: Field[Any]) -> Any:
    return whole_number if kind_of(setting) is int else number


def _some_text(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a text is needed that is not empty")
    return text


def _schema(text: str) -> Any:
    """Read a JSON schema, or the file that is named."""
    if not text.lstrip().startswith("{"):
        try:
            text = Path(path(text)).read_bytes().decode("utf-8-sig")
        except OSError as error:
            reason = error.strerror or error
            raise argparse.ArgumentTypeError(f"cannot read {text!r:.60}: {reason}") from None
        except UnicodeError:
            raise argparse.ArgumentTypeError(f"{text!r:.60} is not in UTF-8") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise argparse.ArgumentTypeError(f"this is not JSON: {error}") from None


def sampling_of(args: argparse.Namespace, **more: Any) -> SamplingConfig:
    """Return what the flags say of the answers; ConfigError if they contradict each other.

    `more` counts where there is no flag.
    """
    given = {name: vars(args)[name] for name in (*NUMBERS, *OTHERS) if name in vars(args)}
    return SamplingConfig(**{**more, **given})


def without_effect(config: SamplingConfig, is_json: bool = True) -> str:
    """Return what is to be told of settings that change nothing; "" if there is none.

    Log-probabilities are told in JSON alone.
    """
    plain = SamplingConfig()
    idle = [name for name in NARROWING if getattr(config, name) != getattr(plain, name)]
    told = []
    if idle and not config.temperature:
        names, s = " and ".join(idle), "s" * (len(idle) == 1)
        told.append(f"at temperature 0, which takes the likeliest token, {names} change{s} nothing")
    if config.n > 1 and not config.temperature and config.num_beams == 1:
        told.append(f"at temperature 0 all {config.n} texts are the same")
    if config.length_penalty != plain.length_penalty and config.num_beams == 1:
        told.append("length_penalty is for beams: without num_beams it changes nothing")
    if config.logprobs is not None and not is_json:
        told.append("logprobs are printed with --json alone")
    return "; ".join(told)


def changed(config: SamplingConfig, name: str, value: str) -> SamplingConfig:
    """Return settings of which one has a value that was typed.

    Raises
    ------
    ConfigError
        If there is no such setting, or it cannot have this value.
    """
    name = name.lstrip("-").replace("-", "_")
    if name == "stop":
        return SamplingConfig.of(config, stop=[value] if value else [])
    if name not in NUMBERS or name in NOT_OF_A_CHAT:
        known = ", ".join(["stop", *(n for n in NUMBERS if n not in NOT_OF_A_CHAT)])
        raise ConfigError(f"there is no setting {name!r:.60} of a chat; there are {known}")
    try:
        read = _reader(NUMBERS[name])(value)
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"{name}: {error}") from None
    if name in LIMITS:
        check_integer(name, read, *LIMITS[name])
    return SamplingConfig.of(config, **{name: read})


def shown(config: SamplingConfig) -> list[str]:
    """Return the settings of a chat as lines for people."""
    lines = [f"{name} {getattr(config, name)}" for name in NUMBERS if name not in NOT_OF_A_CHAT]
    return [*lines, f"stop {' '.join(map(repr, config.stop)) or 'none'}"]
