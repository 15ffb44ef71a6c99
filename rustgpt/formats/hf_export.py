"""Owns writing a model as a folder of Hugging Face, which transformers opens as it is."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Final

from rustgpt.file_set import CONFIG
from rustgpt.formats.folder import Parts, write_folder
from rustgpt.formats.foreign import Array
from rustgpt.formats.hf_config import written_config
from rustgpt.formats.hf_layout import layout_of
from rustgpt.formats.hf_tokenizer import (
    FILE,
    GENERATION,
    MERGES,
    SETTINGS,
    SPECIAL,
    TEMPLATE,
    VOCAB,
)
from rustgpt.formats.output_bias import without_bias
from rustgpt.formats.safetensors_file import INDEX, SINGLE
from rustgpt.formats.safetensors_write import safetensors
from rustgpt.formats.tokenizer_export import library_json
from rustgpt.formats.written_tensors import tensors_of
from rustgpt.generation.text_generator import TextGenerator
from rustgpt.layers.gpt import named_parameters

# What a folder may hold that is replaced.
KNOWN: Final = (
    CONFIG, SINGLE, INDEX, FILE, GENERATION, MERGES, SETTINGS, SPECIAL, TEMPLATE, VOCAB,
)  # fmt: skip


def export(path: str | os.PathLike[str], model: TextGenerator, dtype: str, overwrite: bool) -> None:
    """Write a model with its tokenizer; see `rustgpt.formats.export`."""
    config, texts, V = model.config, model.text_format, model.tokenizer.vocab_size
    parameters: Mapping[str, Array] = named_parameters(model.layers)
    if config.output_bias:
        config, parameters = without_bias(config, parameters)
    fields = written_config(config, V)
    bos_id = texts.bos[0] if texts.bos else None
    end_ids = [*model.end_ids]
    ends = end_ids[0] if len(end_ids) == 1 else end_ids
    special = {"bos_token_id": bos_id, "eos_token_id": ends, "pad_token_id": texts.tokenizer.end_id}
    fields |= {**special, "torch_dtype": dtype}
    content, settings = library_json(
        texts.tokenizer, bos_id, config.max_seq_len, config.chat_template
    )
    layout = layout_of(fields["model_type"], config, V)
    files: dict[str, Parts] = {
        CONFIG: _json(fields),
        GENERATION: _json(special),
        FILE: _json(content),
        SETTINGS: _json(settings),
        SINGLE: safetensors(tensors_of(layout, parameters), dtype),
    }
    write_folder(path, files, KNOWN, overwrite)


def _json(content: object) -> list[bytes]:
    return [json.dumps(content, ensure_ascii=False, indent=2).encode() + b"\n"]
