"""Owns the tests of `rustgpt.formats.safetensors_file`: every type, every size checked."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rustgpt.errors import CheckpointError
from rustgpt.formats.safetensors_file import INDEX, SINGLE, Weights

HALVES = {"F16": (10, 5), "BF16": (7, 8)}  # bits of the fraction and the exponent


def file_of(header: object, data: bytes, length: int | None = None) -> bytes:
    """A file with this header, written by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: str, shape: list[int], end: int) -> dict[str, object]:
    return {"t": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}


def read(folder: Path, name: str = "t") -> np.ndarray:
    with Weights(folder) as weights:
        return np.concatenate([*weights.rows(name)])


def value_of(bits: int, mantissa: int, exponent: int) -> float:
    """The number that the bits of a half stand for, by the definition of the format."""
    fraction, power = bits & (1 << mantissa) - 1, bits >> mantissa & (1 << exponent) - 1
    bias = (1 << exponent - 1) - 1
    size = fraction / (1 << mantissa) + (power > 0)
    return (-1) ** (bits >> mantissa + exponent) * size * 2.0 ** (max(power, 1) - bias)


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_widened_exactly(dtype, tmp_path):
    mantissa, exponent = HALVES[dtype]
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[bits >> mantissa & (1 << exponent) - 1 != (1 << exponent) - 1]  # finite
    content = file_of(one(dtype, [len(bits)], 2 * len(bits)), bits.astype("<u2").tobytes())
    (tmp_path / SINGLE).write_bytes(content)
    found = read(tmp_path)
    assert found.dtype == np.float32
    assert found.tolist() == [value_of(int(b), mantissa, exponent) for b in bits]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numbers_are_read_as_they_are(dtype, tmp_path, rng, monkeypatch):
    values = rng.standard_normal((7, 3)).astype(dtype)
    save_file({"t": values, "other": values[:2]}, tmp_path / SINGLE)
    monkeypatch.setattr("rustgpt.formats.safetensors_file.ROWS_OF", 6)  # two rows at a time
    found = read(tmp_path)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, values)


def test_the_index_decides_and_stray_files_do_not(tmp_path):
    save_file({"t": np.float32([1, 2]), "u": np.float32([9])}, tmp_path / "model-1.safetensors")
    save_file({"u": np.float32([3]), "t": np.float32([8, 8])}, tmp_path / "model-2.safetensors")
    save_file({"t": np.float32([7, 7])}, tmp_path / SINGLE)
    (tmp_path / "model-3.safetensors").write_bytes(b"broken")
    places = {"t": "model-1.safetensors", "u": "model-2.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    with Weights(tmp_path) as weights:
        assert {*weights.tensors} == {"t", "u"}
    assert read(tmp_path).tolist() == [1, 2]
    assert read(tmp_path, "u").tolist() == [3]


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/x.safetensors", "a/b.safetensors", "a\\b.safetensors",
     "C:b.safetensors", ".x.safetensors", "", "weights.bin", 3, None, "a\nb.safetensors"],
)  # fmt: skip
def test_a_path_from_an_index_stays_inside_its_folder(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"t": np.float32([1])}, tmp_path / SINGLE)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(CheckpointError, match="cannot be a file of this folder"):
        Weights(folder)


BROKEN_INDEXES = {
    b"[]": "must hold an object",
    b"{": "is damaged",
    b"\xff": "cannot be read",
    b"{}": 'must have an object "weight_map"',
    b'{"weight_map": {}}': 'must have an object "weight_map"',
    b'{"weight_map": {"t": "no.safetensors"}}': "no.safetensors is missing",
    b'{"weight_map": {"x": "a.safetensors"}}': "lacks the tensor 'x', which model",
}


@pytest.mark.parametrize("content", BROKEN_INDEXES)
def test_a_broken_index_is_refused(content, tmp_path):
    save_file({"t": np.float32([1])}, tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_bytes(content)
    with pytest.raises(CheckpointError, match=BROKEN_INDEXES[content]):
        Weights(tmp_path)


A = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BROKEN = {
    "nothing": (b"", "no safetensors file"),
    "no header": (file_of({}, b"", 100), "no safetensors file"),
    "an endless header": (file_of({}, b"", 2**63), "no safetensors file"),
    "no JSON": (file_of(b"{", b""), "header is damaged"),
    "deep JSON": (file_of(b"[" * 100_000, b""), "header is damaged"),
    "no object": (file_of([], b""), "must be an object"),
    "a name twice": (file_of(b'{"t": 1, "t": 2}', b""), "stands twice"),
    "no shape": (file_of({"t": {"dtype": "F32", "data_offsets": [0, 0]}}, b""), "is missing"),
    "a list": (file_of({"t": []}, b""), "is missing"),
    "an unknown type": (file_of(one("F12", [1], 4), b"1234"), "unknown type"),
    "a type that is a list": (file_of({"t": A | {"dtype": []}}, b"1234"), "unknown type"),
    "a negative size": (file_of(one("F32", [-1], 4), b"1234"), "is no such"),
    "a fraction": (file_of(one("F32", [1.0], 4), b"1234"), "is no such"),
    "true": (file_of(one("F32", [True], 4), b"1234"), "is no such"),
    "a huge size": (file_of(one("F32", [2**62], 4), b"1234"), "is no such"),
    "a wrong size": (file_of(one("F32", [2**40, 2**40], 4), b"1234"), "cannot be in 4 bytes"),
    "three places": (file_of({"t": A | {"data_offsets": [0, 4, 4]}}, b"1234"), "is no such"),
    "backwards": (file_of({"t": A | {"data_offsets": [8, 4]}}, b"12345678"), "cannot be in -4"),
    "overlapping": (file_of({"t": A, "u": A}, b"1234"), "overlap"),
    "a gap": (file_of({"t": A | {"data_offsets": [4, 8]}}, b"12345678"), "overlap"),
    "cut off": (file_of({"t": A}, b"123"), "not as long"),
    "too long": (file_of({"t": A}, b"12345"), "not as long"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused(case, tmp_path):
    content, message = BROKEN[case]
    (tmp_path / SINGLE).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        Weights(tmp_path)


def test_a_sound_file_has_metadata_and_other_types_that_are_not_read(tmp_path):
    header = {"__metadata__": {"format": "pt"}, "t": A} | {
        "mask": {"dtype": "BOOL", "shape": [3], "data_offsets": [4, 7]}
    }
    (tmp_path / SINGLE).write_bytes(file_of(header, np.float32([2]).tobytes() + b"\0\1\0"))
    assert read(tmp_path).tolist() == [2]
    with pytest.raises(CheckpointError, match="'mask' is of type BOOL"):
        read(tmp_path, "mask")


def test_a_pickle_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match=r"pickle .*save_pretrained\(FOLDER\)"):
        Weights(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Weights(tmp_path)


def test_a_file_that_shrinks_meanwhile_is_refused(tmp_path):
    save_file({"t": np.zeros(100_000, np.float32)}, tmp_path / SINGLE)
    with Weights(tmp_path) as weights:
        (tmp_path / SINGLE).write_bytes((tmp_path / SINGLE).read_bytes()[:200])
        with pytest.raises(CheckpointError, match="cut off"):
            [*weights.rows("t")]
