"""Owns `rustgpt tokenizer`: tokenizers trained, used and looked at by themselves."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from rustgpt.cli.data import add_data, read_data
from rustgpt.cli.options import add_path, path
from rustgpt.cli.terminal import note, say
from rustgpt.cli.tokenizer_flags import add_tokenizer, chosen_tokenizer
from rustgpt.errors import ConfigError, DataError, TokenizerError

if TYPE_CHECKING:
    from rustgpt.text.tokenizer import BaseTokenizer

SHOWN: Final = 10  # tokens that `stats` shows


class Action(NamedTuple):
    """A part of the command: what it does, its usage, its arguments, its work."""

    help: str
    usage: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt tokenizer`."""

    class Mixed(type(parser)):  # type: ignore[misc]
        """Takes words between the options too."""

        mixing = False

        def parse_known_args(self, *arguments: Any) -> Any:
            if self.mixing:
                return super().parse_known_args(*arguments)
            self.mixing = True
            return self.parse_known_intermixed_args(*arguments)

    actions = parser.add_subparsers(
        dest="action", required=True, metavar="ACTION", parser_class=Mixed
    )
    for name, action in ACTIONS.items():
        part = actions.add_parser(
            name,
            prog=f"rustgpt tokenizer {name}",
            usage=f"%(prog)s {action.usage}",
            help=action.help,
            description=action.help,
            allow_abbrev=False,
        )
        hidden = argparse.SUPPRESS  # the command's own flag, given behind the action
        part.add_argument("--debug", action="store_true", default=hidden, help=hidden)
        action.add_arguments(part)


def run(args: argparse.Namespace) -> int:
    """Do what was asked."""
    ACTIONS[args.action].run(args)
    return 0


# train


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_tokenizer(parser)
    add_path(parser, "--out", "FILE", "where to write it (default: %(default)s)", "tokenizer.json")
    text = "replace a file that is there; without, it is left alone"
    parser.add_argument("--overwrite", action="store_true", help=text)


def _train(args: argparse.Namespace) -> None:
    file = Path(args.out)
    if file.exists() and not args.overwrite:
        raise ConfigError(
            f"{args.out!r} is there already: choose another file with --out, or give --overwrite "
            "to replace it"
        )
    tokenizer, why = chosen_tokenizer(args, read_data(args))
    if why:
        note(f"rustgpt: {why}")
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with unfinished.open("x", encoding="utf-8") as written:
            written.write(tokenizer.to_json())
        unfinished.replace(file)
    except OSError as error:
        raise DataError(
            f"cannot write {args.out!r}: {error.strerror or error}; choose another file with --out"
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
    say(f"{args.out}: {type(tokenizer).__name__}, {tokenizer.vocab_size:,} tokens")


# encode and decode


def _add_source(parser: argparse.ArgumentParser) -> None:
    text = "a tokenizer.json, or a model's folder, of rustgpt or of Hugging Face"
    parser.add_argument("source", type=path, metavar="TOKENIZER", help=text)


def _encode_arguments(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    text = "the text; none: all of standard input, as it is"
    parser.add_argument("text", nargs="?", metavar="TEXT", help=text)
    parser.add_argument("--json", action="store_true", help="print ids and tokens as JSON")


def _encode(args: argparse.Namespace) -> None:
    tokenizer = _load(args.source)
    ids = tokenizer.encode(_input() if args.text is None else args.text)
    names = [tokenizer.name(i) for i in ids] if args.json else []
    say(json.dumps({"ids": ids, "tokens": names}) if args.json else " ".join(map(str, ids)))


def _decode_arguments(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    parser.add_argument("ids", nargs="*", metavar="ID", help="token ids; none: standard input")
    parser.add_argument("--json", action="store_true", help="print the text as JSON")


def _decode(args: argparse.Namespace) -> None:
    tokenizer = _load(args.source)
    ids = [_number(word) for word in args.ids or _input().split()]
    text = tokenizer.decode(ids, skip_special=False)
    say(json.dumps({"text": text}) if args.json else text)


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 20):
        raise TokenizerError(f"a token id must be a whole number, not {word!r:.60}")
    return int(word)


def _input() -> str:
    """Return what is on standard input."""
    data = sys.stdin.buffer.read() if sys.stdin is not None else b""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"standard input, byte {error.start + 1}: 0x{data[error.start]:02X} is not UTF-8; "
            "give text in UTF-8"
        ) from None


# stats


def _stats_arguments(parser: argparse.ArgumentParser) -> None:
    _add_source(parser)
    add_data(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _stats(args: argparse.Namespace) -> None:
    from rustgpt.text.token_stats import token_stats

    tokenizer = _load(args.source)
    data = read_data(args)
    stats = token_stats(tokenizer, [*data.pretraining_data, *data.chat_training_data], SHOWN)
    facts: dict[str, Any] = {
        "tokenizer": type(tokenizer).__name__,
        "vocabulary": tokenizer.vocab_size,
        **stats._asdict(),
    }
    if args.json:
        say(json.dumps(facts, indent=2))
        return
    frequent = ", ".join(f"{name!r} {times:,}" for name, times in stats.most_frequent)
    say(
        f"tokenizer        {facts['tokenizer']}, {tokenizer.vocab_size:,} tokens, of which "
        f"{stats.used:,} are used here\n"
        f"text             {stats.texts:,} texts, {stats.bytes:,} bytes\n"
        f"tokens           {stats.tokens:,}\n"
        f"bytes per token  {stats.bytes_per_token:.2f}\n"
        f"unknown pieces   {stats.unknown_pieces:,}, tokens that spell what is not in the "
        "vocabulary\n"
        f"longest text     {stats.longest_text:,} tokens\n"
        f"longest tokens   {', '.join(map(repr, stats.longest_tokens))}\n"
        f"most frequent    {frequent}"
    )


def _load(source: str) -> BaseTokenizer:
    from rustgpt.formats import open_tokenizer

    return open_tokenizer(source)


ACTIONS: Final = {
    "train": Action(
        "Make a tokenizer of data and write it.",
        "PATH... [--tokenizer KIND] [--vocab-size N] [--out FILE]",
        _train_arguments,
        _train,
    ),
    "encode": Action(
        "Turn text into token ids.", "TOKENIZER [TEXT] [--json]", _encode_arguments, _encode
    ),
    "decode": Action(
        "Turn token ids into text.", "TOKENIZER [ID...] [--json]", _decode_arguments, _decode
    ),
    "stats": Action(
        "Count what the tokens of data are like.",
        "TOKENIZER PATH... [--json]",
        _stats_arguments,
        _stats,
    ),
}
