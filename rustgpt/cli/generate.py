"""Owns `rustgpt generate`: a text, and how a model continues it."""

from __future__ import annotations

import argparse
import json

from rustgpt.cli.options import add_model, add_sampling
from rustgpt.cli.terminal import note, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt generate`."""
    add_model(parser)
    parser.add_argument("text", metavar="TEXT", help="the text to continue")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    """Print a prompt and its continuation."""
    from rustgpt.llm import LLM

    model = LLM.load(args.model)
    length, most = len(model.prompt_ids(args.text)), model.max_seq_len
    if length > most:
        note(f"rustgpt: the text has {length} tokens; the model sees the last {most} of them")
    made = model.generate(args.text, args.max_new_tokens, args.temperature, args.seed)
    say(json.dumps({"prompt": args.text, "continuation": made}) if args.json else args.text + made)
    return 0
