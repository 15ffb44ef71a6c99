"""Owns writing a model as a GGUF file, which llama.cpp opens as it is."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from rustgpt.config import ModelConfig
from rustgpt.errors import CheckpointError, ConfigError
from rustgpt.file_set import explained, named, sync
from rustgpt.formats.foreign import Array
from rustgpt.formats.gguf_file import package
from rustgpt.formats.gguf_layout import FREQUENCIES, layout_of
from rustgpt.formats.gguf_metadata import architecture_of, describe, describe_texts
from rustgpt.formats.gguf_model import TURNED
from rustgpt.formats.output_bias import without_bias
from rustgpt.formats.safetensors_write import Tensor, rounded
from rustgpt.formats.written_tensors import tensors_of
from rustgpt.generation.text_generator import TextGenerator
from rustgpt.layers.gpt import named_parameters
from rustgpt.layers.rotary import Rotary

# The types of numbers: that of the weights, and what llama.cpp calls such a file.
KINDS: Final = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
BLOCK: Final = 32  # numbers that Q8_0 scales together


def export(path: str | os.PathLike[str], model: TextGenerator, dtype: str, overwrite: bool) -> None:
    """Write a model with its tokenizer; see `rustgpt.formats.export`."""
    if dtype not in KINDS:
        raise ConfigError(f"the numbers of a GGUF file can be {', '.join(KINDS)}, not {dtype}")
    gguf = package()
    config, V = model.config, model.tokenizer.vocab_size
    parameters: Mapping[str, Array] = named_parameters(model.layers)
    if config.output_bias:
        config, parameters = without_bias(config, parameters)
    kind = architecture_of(config)
    writer = gguf.GGUFWriter(None, kind)
    writer.add_type("model")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType[KINDS[dtype][1]])
    describe(writer, config, V)
    describe_texts(writer, model.text_format, model.end_ids)
    tensors = tensors_of(layout_of(kind, config, V), parameters)
    if config.rope_scaling == "llama3":
        tensors.append(_frequencies(config))
    with _replaced(named(path), overwrite) as unfinished:
        _write(writer, gguf, tensors, config, dtype, unfinished)


def _write(
    writer: Any, gguf: Any, tensors: list[Tensor], config: ModelConfig, dtype: str, path: Path
) -> None:
    """Write the file, one tensor in memory at a time."""
    kinds = [_kind(tensor, dtype) for tensor in tensors]
    for tensor, kind in zip(tensors, kinds, strict=True):
        of_block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[KINDS[kind][0]]]
        n = math.prod(tensor.shape) // of_block * size
        code = gguf.GGMLQuantizationType[KINDS[kind][0]]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n, code)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in zip(tensors, kinds, strict=True):
            values = np.concatenate([*tensor.rows()])
            if writer.arch == "llama" and tensor.name.endswith(TURNED):
                heads = config.n_kv_heads if ".attn_k." in tensor.name else config.n_heads
                values = _pairs(values, heads)
            writer.write_tensor_data(_numbers(values, kind, gguf, tensor.name))
    finally:
        writer.close()


def _kind(tensor: Tensor, dtype: str) -> str:
    """Return the type of a tensor's numbers: as llama.cpp has it, vectors are float32.

    So are positions. Rows that are no whole blocks of Q8_0 are float16.
    """
    if len(tensor.shape) == 1 or tensor.name.startswith("position_"):
        return "float32"
    return "float16" if dtype == "q8_0" and tensor.shape[-1] % BLOCK else dtype


def _numbers(values: Array, kind: str, gguf: Any, name: str) -> Array:
    """Return the numbers of a tensor as they are written."""
    if kind != "q8_0":
        return np.ascontiguousarray(rounded(values, kind, name))
    plain = np.ascontiguousarray(rounded(values, "float32", name))
    # A block's scale is the largest of its numbers by 127, in float16.
    rounded(np.abs(plain).max(initial=0, keepdims=True) / 127, "float16", name)
    found: Array = gguf.quants.quantize(plain, gguf.GGMLQuantizationType.Q8_0)
    return found


def _pairs(rows: Array, heads: int) -> Array:
    """Return the rows of queries or keys as llama.cpp has them; what undoes `_halves`."""
    n = len(rows) // heads // 2  # D / 2
    halves = rows.reshape(heads, 2, n, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _frequencies(config: ModelConfig) -> Tensor:
    """Return what llama.cpp divides the frequencies of rotary positions by."""
    head_dim = config.embedding_dim // config.n_heads
    scaled = Rotary.of(config)
    if scaled is None:
        raise CheckpointError("rope_scaling needs rotary positions")
    plain = Rotary(head_dim, config.max_seq_len, config.rope_theta)
    divisors = (plain.frequencies() / scaled.frequencies()).astype(np.float32)  # (D / 2,)
    return Tensor(FREQUENCIES, divisors.shape, lambda: iter([divisors]))


@contextmanager
def _replaced(path: Path, overwrite: bool) -> Iterator[Path]:
    """Give the name of a file to write, which takes its own name when it is whole.

    Raises
    ------
    CheckpointError
        If it cannot be written, or there is one already that may not be replaced.
    """
    with explained(f"cannot write {path}"):
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: name a file, such as model.gguf")
        if path.exists() and not overwrite:
            raise CheckpointError(
                f"{path} is there already: choose another name, or give --overwrite to replace it"
            )
        path = path.resolve()  # of a link, what it names
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.new")
        try:
            yield unfinished
            with open(unfinished, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        with suppress(OSError):
            sync(path.parent)
