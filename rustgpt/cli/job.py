"""Owns `rustgpt` without a command: a model is trained, unless there is one, and talked to."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from rustgpt.cli import train
from rustgpt.cli.chat import converse
from rustgpt.cli.options import add_sampling
from rustgpt.cli.terminal import is_terminal, note, say

# What may be given, or have a default, without anything being said of a training.
OF_THE_CHAT: Final = {"out", "temperature", "max_new_tokens", "debug"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the whole job."""
    add_sampling(parser, seed=False)
    train.add_arguments(parser, positional=False)


def run(args: argparse.Namespace) -> int:
    """Train and save a model, unless there is one and nothing is said of training; talk to it."""
    from rustgpt.checkpoint import is_model
    from rustgpt.llm import LLM

    if args.print_config or args.dry_run:
        return train.run(args)
    of_training = [value for name, value in vars(args).items() if name not in OF_THE_CHAT]
    if all(value is None for value in of_training) and is_model(args.out):
        model = LLM.load(args.out)
        note(
            f"rustgpt: {args.out!r} holds a model, and this is its chat; to train anew, give "
            "--overwrite to replace it or --out for another folder"
        )
    else:
        model, status = train.trained(args)
        if status:
            return status
    if is_terminal(sys.stdin):
        say("\n=== CHAT ===\nType a prompt and press Enter; 'exit' ends the chat.")
    seed = getattr(args, "seed", model.config.seed)
    return converse(model.chat(args.max_new_tokens, args.temperature, seed))
