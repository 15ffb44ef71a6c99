"""Tests of the token cache's files."""

import json
from contextlib import suppress

import numpy as np
import pytest

from rustgpt.text.rows import Row, flat_parts
from rustgpt.text.token_files import read_tokens, replacing, sweep, write_tokens

ROWS = [
    np.array([3, 1, 4, 1, 5], np.int32),
    Row(np.array([9, 2, 6], np.int32), np.array([True, False])),
    np.array([], np.int32),
    Row(np.array([5, 3], np.int32), continues=True),
    np.array([70_000, 8], np.int32),
]


def write(path, vocab_size=100_000, masked=True):
    write_tokens(path, flat_parts(ROWS), vocab_size, masked)


@pytest.mark.parametrize(("vocab_size", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.int32)])
def test_what_was_written_is_read(tmp_path, vocab_size, dtype):
    rows = ROWS[:4]
    write_tokens(tmp_path / "a", flat_parts(rows), vocab_size, True)
    found = read_tokens(tmp_path / "a")
    assert [len(row) for row in found] == [5, 3, 2]
    assert found[0].tolist() == [3, 1, 4, 1, 5]
    assert (found[1].ids.tolist(), found[1].counted.tolist()) == ([9, 2, 6], [True, False])
    assert found[0].dtype == np.int32
    assert (tmp_path / "a.ids").stat().st_size == 10 * np.dtype(dtype).itemsize


def test_without_a_mask_all_counts(tmp_path):
    write(tmp_path / "a", masked=False)
    assert not (tmp_path / "a.counted").exists()
    assert read_tokens(tmp_path / "a").count_targets() == 4 + 2 + 1 + 1


def test_further_edges_are_in_a_file_that_is_gone_afterwards(tmp_path):
    write(tmp_path / "a")
    before = sorted(tmp_path.iterdir())
    cut = read_tokens(tmp_path / "a").cut(2)
    assert isinstance(cut._edges, np.memmap)
    assert [len(row) for row in cut] == [3, 3, 3, 2, 2]
    assert len(cut.cut(1)) == 4 + 2 + 1 + 1
    assert sorted(tmp_path.iterdir()) == before


def test_no_texts(tmp_path):
    write_tokens(tmp_path / "a", flat_parts([]), 9, True)
    assert len(read_tokens(tmp_path / "a")) == len(read_tokens(tmp_path / "a").cut(3)) == 0


@pytest.mark.parametrize("kind", ["ids", "edges", "counted"])
def test_a_file_that_is_too_short_or_missing(tmp_path, kind):
    write(tmp_path / "a")
    file = tmp_path / f"a.{kind}"
    file.write_bytes(file.read_bytes()[:-1])
    assert read_tokens(tmp_path / "a") is None
    file.unlink()
    assert read_tokens(tmp_path / "a") is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"dtype": "uint16"}',
        b'{"dtype": 3, "sizes": {"ids": 1}}',
        b'{"dtype": "object", "sizes": {"ids": 1}}',
        b'{"dtype": "uint16", "sizes": {"ids": -1}}',
        b'{"dtype": "uint16", "sizes": {"../ids": 1}}',
    ],
)
def test_a_manifest_of_another_form(tmp_path, content):
    write(tmp_path / "a")
    (tmp_path / "a.json").write_bytes(content)
    assert read_tokens(tmp_path / "a") is None


def test_what_was_half_written_is_not_used_and_goes(tmp_path):
    def broken():
        yield from ROWS[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(tmp_path / "a", flat_parts(broken()), 99, False)
    assert list(tmp_path.iterdir()) == []
    write(tmp_path / "b")
    with suppress(KeyboardInterrupt), replacing(tmp_path / "b.json") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert len(read_tokens(tmp_path / "b")) == 4
    for name in ("c.ids", "c.edges"):  # of a process that was killed
        (tmp_path / name).write_bytes(b"12345678")
    sweep(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "b.counted", "b.edges", "b.ids", "b.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "b.json").read_text())["sizes"]["edges"] == 8
