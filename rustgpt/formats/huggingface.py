"""Owns reading a folder of Hugging Face: where each parameter of ours lies, tied or not."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np

from rustgpt.errors import CheckpointError
from rustgpt.formats.foreign import Array, ForeignModel
from rustgpt.formats.hf_config import read_config, read_fields, vocab_size
from rustgpt.formats.hf_layout import HEAD, layout_of
from rustgpt.formats.hf_tokenizer import read_folder, read_template
from rustgpt.formats.safetensors_file import Weights

# What old files hold beside the parameters: GPT-2's causal mask, Llama's frequencies.
BUFFERS: Final = re.compile(
    r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias"
    r"|(model\.)?layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)


class HuggingFaceModel(ForeignModel):
    """A model in a folder of Hugging Face: config.json, safetensors, tokenizer.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or the model cannot be expressed here.
    TokenizerError
        If that is so of the tokenizer.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        fields = read_fields(folder)
        with ExitStack() as held:
            self._weights = weights = held.enter_context(Weights(folder))
            wide = any(stored.dtype == "F64" for stored in weights.tensors.values())
            self.config = read_config(fields, "float64" if wide else "float32")
            kind, V = fields.values["model_type"], vocab_size(fields)
            self.layout = layout_of(kind, self.config, V, weights.tensors.keys())
            (self._table,) = self.layout["layers.0.tokens"]
            self.check_tensors()  # before anything is made for the sizes that are claimed
            self.tokens, bos_id, end_ids = read_folder(folder, V, fields.values)
            bos = next((n for n, i in self.tokens.special_ids.items() if i == bos_id), None)
            self.config = replace(
                self.config,
                add_bos_token=bos_id >= 0,
                bos_token_id=bos_id,
                end_token_ids=() if end_ids == (self.tokens.end_id,) else end_ids,
                chat_template=read_template(folder, bos),
            )
            self.enter_context(held.pop_all())

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        tied = self.config.tie_embeddings
        return {
            name: stored.shape
            for name, stored in self._weights.tensors.items()
            if not BUFFERS.fullmatch(name) and not (name == HEAD and tied)
        }

    def rows(self, name: str) -> Iterator[Array]:
        return self._weights.rows(name)

    def check_tensors(self) -> None:
        super().check_tensors()
        head = self._weights.tensors.get(HEAD)
        if self.config.tie_embeddings and head and head.shape != self._table.shape:
            self._refuse_head()

    def read_into(self, tensors: Mapping[str, Array]) -> None:
        super().read_into(tensors)
        if self.config.tie_embeddings and HEAD in self._weights.tensors:
            table = self._weights.rows(self._table.name)
            for ours, theirs in zip_longest(table, self._weights.rows(HEAD)):
                if not np.array_equal(ours, theirs):
                    self._refuse_head()

    def _refuse_head(self) -> None:
        raise CheckpointError(
            f"{self.folder}: config.json says that the output projection is the table of the "
            f"tokens (tie_word_embeddings), but {HEAD!r} and {self._table.name!r} differ: set "
            "tie_word_embeddings to false if both are meant, or leave out the wrong one"
        )
