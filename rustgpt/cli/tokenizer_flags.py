"""Owns the flags with which a training chooses its tokenizer."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from rustgpt.cli.options import add_number, add_path

if TYPE_CHECKING:
    from rustgpt.text.dataset import Dataset
    from rustgpt.text.tokenizer import BaseTokenizer

AUTO: Final = "auto"
KINDS: Final = ("word", "char", "byte", "bpe")
LARGEST: Final = 2**24  # tokens


def add_tokenizer(group: argparse._ActionsContainer) -> None:
    """Add the flags that choose a tokenizer."""
    text = (
        f"the tokens: {', '.join(KINDS)}, a tokenizer.json, or a model's folder; bpe needs the "
        f"extra rustgpt[bpe] (default: {AUTO}, by a look at the data)"
    )
    add_path(group, "--tokenizer", "KIND|PATH", text)
    text = (
        "the most tokens to know, where they are found in the data (default: 32768 of words or "
        "characters, 4096 of bpe)"
    )
    add_number(group, "--vocab-size", (1, LARGEST), text)


def chosen_tokenizer(args: argparse.Namespace, dataset: Dataset) -> tuple[BaseTokenizer, str]:
    """Return the tokenizer that the flags name, or that suits the data, and why; "" if named."""
    name, why = args.tokenizer or AUTO, ""
    if name == AUTO:
        name, why = dataset.suitable_tokenizer()
        why = f"tokenizer: {why}; --tokenizer chooses another"
    if name not in KINDS and args.vocab_size is None:
        from rustgpt.formats import open_tokenizer

        return open_tokenizer(name), ""
    return dataset.tokenizer(name, args.vocab_size), why
