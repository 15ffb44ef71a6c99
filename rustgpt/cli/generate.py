"""Owns `rustgpt generate`: a text, and how a model continues it."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rustgpt.cli.options import add_model, add_path
from rustgpt.cli.sampling import add_sampling, sampling_of, without_effect
from rustgpt.cli.terminal import is_terminal, note, say
from rustgpt.errors import ConfigError, DataError
from rustgpt.generation.sampling_config import SamplingConfig

if TYPE_CHECKING:
    from rustgpt.generation.continuation import Sample
    from rustgpt.llm import LLM


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt generate`."""
    add_model(parser)
    text = "the text to continue; without one, or with -, standard input is read"
    parser.add_argument("text", metavar="TEXT", nargs="?", help=text)
    add_path(parser, "--file", "FILE", "a file that holds the text; - for standard input")
    text = "print the text while it is made; with --json, a line of JSON for each token"
    parser.add_argument("--stream", action="store_true", help=text)
    text = "print the result as JSON, with each token, its log-probability and why the text ended"
    parser.add_argument("--json", action="store_true", help=text)
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    """Print a prompt and its continuation."""
    config = sampling_of(args, logprobs=0 if args.json else None)
    if args.stream and (config.n > 1 or config.num_beams > 1):
        raise ConfigError("--stream prints one text while it is made: leave out --n, --num-beams")
    if args.text is not None and args.file is not None:
        raise ConfigError("a text and --file are both given: leave out one of them")
    prompt = _prompt(args)
    from rustgpt.llm import LLM

    model = LLM.load(args.model)
    length, most = len(model.prompt_ids(prompt)), model.max_seq_len
    if length > most:
        note(f"rustgpt: the text has {length} tokens; the model sees the last {most} of them")
    if idle := without_effect(config, args.json):
        note(f"rustgpt: {idle}")
    if args.stream and args.json:
        _stream_json(model, prompt, config)
    elif args.stream:
        _stream(model, prompt, config)
    else:
        samples = model.samples(prompt, sampling=config)
        if args.json:
            _print_json(prompt, samples)
        else:
            joint = _joint(prompt, config)
            say("\n\n".join(f"{prompt}{joint}{sample.text}" for sample in samples))
    return 0


def _prompt(args: argparse.Namespace) -> str:
    """Return the text that is named, without the line break at the end of what is read."""
    name = args.file if args.file is not None else args.text
    if args.file is None and args.text not in (None, "-"):
        return str(args.text)
    if name in (None, "-"):
        if is_terminal(sys.stdin):
            raise ConfigError("there is no text: give it as an argument, by --file or by a pipe")
        content = sys.stdin.buffer.read() if sys.stdin is not None else b""
    else:
        try:
            content = Path(name).read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {name!r:.60}: {error.strerror or error}") from None
    text = content.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    return text.removesuffix("\n")


def _stream(model: LLM, prompt: str, config: SamplingConfig) -> None:
    say(prompt + _joint(prompt, config), end="")
    for piece in model.stream(prompt, sampling=config):
        say(piece, end="")
    say()


def _stream_json(model: LLM, prompt: str, config: SamplingConfig) -> None:
    """Print a line for each token, with what is certain of the text then, and one for the end."""
    made, told = model.stream(prompt, sampling=config), 0
    while (piece := made.step()) is not None:
        for token in made.tokens[told:]:
            say(json.dumps({"text": piece, "token": _plain(token._asdict())}))
        told = len(made.tokens)
    say(json.dumps({"ended": made.ended}))


def _joint(prompt: str, config: SamplingConfig) -> str:
    """Return what stands between a prompt and an answer that is given without its space."""
    return " " * (config.is_held and bool(prompt) and not prompt[-1].isspace())


def _print_json(prompt: str, samples: list[Sample]) -> None:
    found = [
        {"text": s.text, "ended": s.ended, "tokens": [_plain(t._asdict()) for t in s.tokens]}
        for s in samples
    ]
    say(json.dumps({"prompt": prompt, "samples": found}))


def _plain(token: dict[str, Any]) -> dict[str, Any]:
    """Return a token for JSON, which has no number for the logarithm of 0."""
    token["likeliest"] = [
        {"text": text, "logprob": value} for text, value in token["likeliest"] if value > -math.inf
    ]
    if token["logprob"] == -math.inf:
        token["logprob"] = None
    return token
