"""Where data come from: files, folders, patterns, standard input; and how they are encoded."""

import io
import os
import sys
import threading
import tracemalloc

import pytest

from rustgpt.errors import DataError
from rustgpt.text.dataset import Dataset
from rustgpt.text.sources import find_sources


@pytest.fixture
def notes(tmp_path, monkeypatch):
    """A folder of someone's notes, and the working folder beside it."""
    files = {
        "notes/tar.md": "# Tar\nis sticky.",
        "notes/deep/sea.txt": "The sea,\nit is salt.",
        "notes/deep/chat.jsonl": '{"question": "Is tar sticky?", "answer": "Yes."}\n',
        "notes/photo.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
        "notes/old.txt": "caf\xe9s".encode("latin-1"),
        "notes/.hidden": "secret",
        "notes/.git/config": "secret",
        "notes/empty.md": "",
        "notes/rustgpt-model/config.json": '["no data"]',
        "notes/rustgpt-model/model.safetensors": "no data",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_folder(notes):
    for path in ("notes", "notes/", notes / "notes", ["notes"], ["notes", "notes/tar.md"]):
        data = Dataset.load(path)
        assert data.pretraining_data == [
            "The sea,\nit is salt. </s>",
            "# Tar\nis sticky. </s>",
        ]
        assert data.chat_training_data == ["User: Is tar sticky? Assistant: Yes. </s>"]
        report = data.report
        assert len(report.files) == 4
        assert report.total("empty") == 1
        old, photo = report.left_out
        assert "old.txt', line 1, column 4: byte 0xE9 is not UTF-8" in old
        assert "photo.png', line 2, column 3: a NUL byte" in photo or "not UTF-8" in photo


def test_a_file_that_is_named_must_be_sound(notes):
    with pytest.raises(DataError, match=r"old\.txt"):
        Dataset.load(["notes/tar.md", "notes/old.txt"])
    with pytest.raises(DataError, match=r"photo\.png"):
        Dataset.load("notes/*.png")


def test_patterns(notes):
    assert len(Dataset.load("notes/*.md").pretraining_data) == 1
    assert [source.name for source in find_sources("notes/**/s*.txt")] == ["'notes/deep/sea.txt'"]
    (notes / "a[1].txt").write_text("brackets")
    assert Dataset.load("a[1].txt").pretraining_data == ["brackets </s>"]
    with pytest.raises(DataError, match=r"'notes/\*\.csv': there is no such file, and no match"):
        Dataset.load("notes/*.csv")


def test_several_in_their_order_and_none_twice(notes):
    names = ["notes/tar.md", "notes/deep/sea.txt", "./notes/tar.md"]
    assert [source.name for source in find_sources(names)] == [
        "'notes/tar.md'",
        "'notes/deep/sea.txt'",
    ]
    with pytest.raises(DataError, match="no data to load"):
        find_sources([])


def test_standard_input(monkeypatch):
    content = "from a pipe".encode("utf-16")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert Dataset.load("-").pretraining_data == ["from a pipe </s>"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(DataError, match="standard input holds no text"):
        Dataset.load("-")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(DataError, match="no standard input"):
        Dataset.load("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
def test_a_pipe_with_a_name(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b'["Moles dig."]',))
    writer.start()
    assert Dataset.load(path).pretraining_data == ["Moles dig. </s>"]
    writer.join()
    (tmp_path / "tar.txt").write_text("Tar is sticky.")
    assert len(Dataset.load(tmp_path).pretraining_data) == 1  # in a folder it is passed over


def test_a_link_that_leads_nowhere(tmp_path):
    (tmp_path / "tar.txt").write_text("Tar is sticky.")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "none.txt")
    data = Dataset.load(tmp_path)
    assert len(data.pretraining_data) == 1
    assert "gone.txt" in data.report.left_out[0]


@pytest.mark.parametrize("name", ["", "  "])
def test_no_name(name):
    with pytest.raises(DataError, match="name a file or a folder"):
        Dataset.load(name)


LINE = "The wind, they say, turns;\n"
FILES = {
    "prose.txt": LINE.encode(),
    "crlf.txt": LINE.replace("\n", "\r\n").encode(),
    "zh.txt": "夜里，猫头鹰捕食，\n".encode(),
    "quotes.txt": f"“{LINE}”".encode(),
    "prose.md": f"{LINE.strip()} ".encode(),
    "list.json": b'"' + LINE.strip().encode() * 10 + b'",\n',
    "rows.jsonl": b'{"text": "' + LINE.strip().encode() * 20 + b'"}\n',
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_memory_is_at_most_three_times_the_file(tmp_path, monkeypatch, name):
    path, size = tmp_path / name, 4_000_000
    content = FILES[name] * (size // len(FILES[name]))
    path.write_bytes(b"[" + content + b'""]' if name == "list.json" else content)
    monkeypatch.setattr("rustgpt.text.sources.PIECE", 2**18)  # as it is to a file of 64 MB
    tracemalloc.start()
    try:
        data = Dataset.load(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(map(len, data.pretraining_data)) > size / 4
    assert peak < 3.05 * size


def test_a_large_document_in_pieces_is_one_text(tmp_path, monkeypatch):
    monkeypatch.setattr("rustgpt.text.sources.PIECE", 30)
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n" * 40 + (LINE * 5).replace("\n", "\r\n").encode() + b"\n" * 70)
    data = Dataset.load(path)
    assert "".join(data.pretraining_data) == (LINE * 5).strip() + " </s>"
    assert len(data.pretraining_data) == 3
    assert [text.endswith("</s>") for text in data.pretraining_data] == [False, False, True]
    assert data.report.files[0].texts == 1


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("GB18030", "夜里猫头鹰出来捕食。"),
        ("Windows-1252", "Ein Käuzchen jagt nachts über die Höfe."),
    ],
)
def test_the_likely_encoding_of_what_is_not_utf8_is_named(tmp_path, encoding, text):
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding))
    with pytest.raises(DataError, match=f"if it is in {encoding}: iconv -f {encoding.upper()} "):
        Dataset.load(file)
