"""Owns `rustgpt` without a command: a model is trained, unless there is one, and talked to."""

from __future__ import annotations

import argparse
import sys
from typing import Final

from rustgpt.cli import train
from rustgpt.cli.chat import add_chat, talk
from rustgpt.cli.sampling import NOT_OF_A_CHAT, NUMBERS, OTHERS, add_sampling, sampling_of
from rustgpt.cli.terminal import is_terminal, note, say
from rustgpt.generation.sampling_config import SamplingConfig

# What may be given, or have a default, without anything being said of a training.
OF_THE_CHAT: Final = {*NUMBERS, *OTHERS, "system", "no_history", "out", "debug"} - {"seed"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the whole job."""
    add_chat(parser)
    add_sampling(parser, ("seed", *NOT_OF_A_CHAT))
    train.add_arguments(parser, positional=False)


def run(args: argparse.Namespace) -> int:
    """Train and save a model, unless there is one and nothing is said of training; talk to it."""
    config = sampling_of(args)
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
        say("\n=== CHAT ===\nType a prompt and press Enter; 'exit' ends the chat, /help has more.")
    seed = getattr(args, "seed", model.config.seed)
    return talk(model, args, SamplingConfig.of(config, seed=seed))
