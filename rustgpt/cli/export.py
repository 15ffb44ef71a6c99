"""Owns `rustgpt export`: a model written for other programs."""

from __future__ import annotations

import argparse

from rustgpt.cli.options import add_model, path
from rustgpt.cli.terminal import say

# What each format is for.
FORMATS = {
    "hf": "a folder of Hugging Face, which transformers opens as it is",
    "gguf": "a file, which llama.cpp opens as it is",
}
DTYPES = ("float32", "float16", "bfloat16", "q8_0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `rustgpt export`."""
    text = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("format", choices=FORMATS, metavar="FORMAT", help=text)
    add_model(parser)
    text = "where to write it"
    parser.add_argument("destination", type=path, metavar="DESTINATION", help=text)
    text = f"the numbers on disk: {', '.join(DTYPES)}, the last for gguf alone "
    text += "(default: those of the model)"
    parser.add_argument("--dtype", choices=DTYPES, metavar="NAME", help=text)
    text = "replace a model of this format that is there; without, it is left alone"
    parser.add_argument("--overwrite", action="store_true", help=text)


def run(args: argparse.Namespace) -> int:
    """Write the model."""
    from rustgpt import formats
    from rustgpt.llm import LLM

    model = LLM.load(args.model)
    formats.export(model, args.destination, args.format, args.dtype, args.overwrite)
    say(f"The model is written in {args.destination}: {FORMATS[args.format]}.")
    return 0
