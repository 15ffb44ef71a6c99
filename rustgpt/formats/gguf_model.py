"""Owns reading a GGUF file: a model of llama.cpp, with its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from rustgpt.formats.foreign import Array, ForeignModel
from rustgpt.formats.gguf_config import read_config
from rustgpt.formats.gguf_file import GgufFile
from rustgpt.formats.gguf_layout import FREQUENCIES, TABLE, layout_of
from rustgpt.formats.gguf_tokenizer import read_template, read_tokenizer

# The parts of a model of Llama whose rows lie in another order.
TURNED: Final = ("attn_q.weight", "attn_k.weight", "attn_q.bias", "attn_k.bias")


class GgufModel(ForeignModel):
    """A model in a GGUF file.

    Raises
    ------
    CheckpointError
        If the file is damaged, or the model cannot be expressed here.
    TokenizerError
        If that is so of the tokenizer.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = file = GgufFile(path)
        self.callback(file.close)
        self._kind: str = file.metadata.get("general.architecture", "")
        config = read_config(file)
        table = file.tensors.get(TABLE)
        V = table.shape[0] if table and len(table.shape) == 2 else 0
        self.config = config
        self.layout = layout_of(self._kind, config, V)
        self.check_tensors()  # before anything is made for the sizes that are claimed
        self.tokens, bos_id, end_ids = read_tokenizer(file)
        if self.tokens.vocab_size != V:
            file.refuse(f"it has {self.tokens.vocab_size:,} tokens, but vectors for {V:,}")
        self.config = replace(
            config,
            add_bos_token=bos_id >= 0,
            bos_token_id=bos_id,
            end_token_ids=() if end_ids == (self.tokens.end_id,) else end_ids,
            chat_template=read_template(file, self.tokens),
        )

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {
            name: stored.shape for name, stored in self._file.tensors.items() if name != FREQUENCIES
        }

    def rows(self, name: str) -> Iterator[Array]:
        if self._kind != "llama" or not name.endswith(TURNED):
            return self._file.rows(name)
        heads = self.config.n_kv_heads if ".attn_k." in name else self.config.n_heads
        return iter([_halves(np.concatenate([*self._file.rows(name)]), heads)])


def _halves(rows: Array, heads: int) -> Array:
    """Return the rows of queries or keys with the halves of each head one behind the other.

    llama.cpp turns the numbers 2 i and 2 i + 1 of a head together, where we turn i and i + D / 2.
    """
    n = len(rows) // heads // 2  # D / 2
    pairs = rows.reshape(heads, n, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)
