"""Tests of data that stay in their files."""

import json
import os
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from rustgpt.data_order import DataOrder, steps_of_tokens
from rustgpt.errors import DataError
from rustgpt.llm import LLM
from rustgpt.text import rows as rows_module
from rustgpt.text import sources, stored
from rustgpt.text.dataset import Dataset, default_cache
from rustgpt.text.pieces import hold_out
from rustgpt.text.rows import ids_of, targets_of
from rustgpt.text.stored import StoredTexts, characters, digest, encode_all
from rustgpt.text.text_format import TextFormat
from rustgpt.trainer import Trainer

from ..test_trainer import config_of

ITEMS = [
    {"text": "Moles dig tunnels in the dark."},
    {"question": "What do moles dig?", "answer": "Tunnels, mostly."},
    "User: Is tar sticky? Assistant: Yes. </s> User: And glass? Assistant: No. </s>",
    {"text": "Tar is black and sticky."},
    {"text": None, "note": 1},
    {"answer": 4},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with texts and dialogues in two files."""
    monkeypatch.setattr(sources, "PIECE", 40)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    place = tmp_path / "data"
    place.mkdir()
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, ITEMS * 5)), encoding="utf-8")
    (place / "prose.txt").write_text("Water is wet,\nas all know.\n\n" * 9, encoding="utf-8")
    return place


@pytest.fixture
def load(folder, monkeypatch):
    """load(stored, **more): the data of the folder, in memory or stored."""

    def load(is_stored, paths=folder, **more):
        monkeypatch.setattr(stored, "LARGE", 0 if is_stored else 2**24)
        return Dataset.load(paths, **more)

    return load


def begun(tokenizer):
    return TextFormat(tokenizer, tokenizer.end_id)


def same_rows(found, expected):
    assert [ids_of(row).tolist() for row in found] == [ids_of(row).tolist() for row in expected]
    assert [targets_of(row).tolist() for row in found] == [
        targets_of(row).tolist() for row in expected
    ]


def test_stored_data_are_the_same_as_data_in_memory(load):
    a, b = load(False), load(True)
    assert isinstance(b.pretraining_data, StoredTexts)
    assert isinstance(a.pretraining_data, list)
    for name in ("pretraining_data", "chat_training_data", "dialogues", "tuning_data"):
        one, other = getattr(a, name), getattr(b, name)
        assert list(one) == list(other)
        assert len(one) == len(other)
        assert (other[0], other[-1], other[1:3]) == (one[0], one[-1], one[1:3])
        if name != "dialogues":
            assert characters(one) == characters(other)
    assert b.report == a.report
    assert digest(a.pretraining_data) == digest(b.pretraining_data)
    assert b.other_chats == a.other_chats == 0
    first, whole = b.beginning(2**20)
    assert (first.pretraining_data, whole) == (a.pretraining_data, False)
    assert first.tuning_data == a.tuning_data
    assert b.suitable_tokenizer() == a.suitable_tokenizer()
    with pytest.raises(IndexError):
        b.pretraining_data[len(b.pretraining_data)]


@pytest.mark.parametrize("name", ["auto", "word", "char", "byte"])
def test_they_become_the_same_tokens(load, name):
    a, b = load(False), load(True)
    tokenizer = b.tokenizer(name)
    assert tokenizer.to_json() == a.tokenizer(name).to_json()
    for text_format in (begun(tokenizer), TextFormat(tokenizer)):
        texts = [encode_all(data.pretraining_data, text_format, "") for data in (a, b)]
        same_rows(*texts)
        for loss_on in ("assistant", "all"):
            same_rows(*(encode_all(d.tuning_data, text_format, loss_on) for d in (a, b)))
    # A document that was read in pieces is one text.
    assert len(texts[1]) < len(b.pretraining_data)


@pytest.mark.parametrize("settings", [{}, {"batch_tokens": 30, "validation_share": 0.2}])
def test_a_training_on_them_has_the_same_bytes(load, small, settings):
    models = []
    for is_stored in (False, True):
        data = load(is_stored)
        model = LLM(small(), data.tokenizer("char"))
        trainer = Trainer(model, config_of(pretrain_epochs=2, tune_epochs=1, **settings))
        trainer.pretrain(data.pretraining_data)
        trainer.instruction_tune(data.tuning_data)
        assert trainer.split_texts > 0
        models.append(model.parameters.tobytes())
    assert models[0] == models[1]


def test_the_second_time_nothing_is_read(load, monkeypatch):
    data = load(True)
    tokenizer = data.tokenizer("char")
    rows = encode_all(data.pretraining_data, begun(tokenizer), "")
    told = []
    monkeypatch.setattr(stored, "read", lambda *_: 1 / 0)
    again = load(True, on_progress=lambda *what: told.append(what))
    assert again.tokenizer("char").to_json() == tokenizer.to_json()
    same_rows(encode_all(again.pretraining_data, begun(tokenizer), ""), rows)
    assert (again.report, told) == (data.report, [])
    with pytest.raises(ZeroDivisionError):  # for another tokenizer it is
        again.tokenizer("word")


def test_all_work_is_told(load, folder):
    told = []
    data = load(True, on_progress=lambda *what: told.append(what))
    encode_all(data.tuning_data, begun(data.tokenizer("char")), "all")
    total = sum(file.stat().st_size for file in folder.iterdir())
    assert {what for what, _, _ in told} == {"reading", "finding the tokens", "tokenising"}
    assert {all_of_it for _, _, all_of_it in told} == {total}
    reading = [done for what, done, _ in told if what == "reading"]
    assert reading == sorted(reading)
    assert (reading[0] < total, reading[-1]) == (True, total)


@pytest.mark.parametrize("change", ["content", "time", "file"])
def test_a_changed_file_is_noticed(load, folder, change):
    before = load(True)
    tokenizer = before.tokenizer("char")
    rows = encode_all(before.pretraining_data, begun(tokenizer), "")
    file = folder / "prose.txt"
    if change == "content":
        file.write_text("Snow is white.\n", encoding="utf-8")
    elif change == "time":
        stat = file.stat()
        file.write_text(file.read_text().replace("Water", "Paint"), encoding="utf-8")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    else:
        (folder / "more.txt").write_text("Snow is white.\n", encoding="utf-8")
    after = load(True)
    assert digest(after.pretraining_data) != digest(before.pretraining_data)
    found = encode_all(after.pretraining_data, begun(tokenizer), "")
    same_rows(found, encode_all(load(False).pretraining_data, begun(tokenizer), ""))
    assert len(rows[0]) > 1  # who has it open has it still
    if change != "file":  # one folder for the same paths
        assert len(list(default_cache().iterdir())) == 1


def test_a_file_that_is_changed_while_it_is_read(load, folder, monkeypatch):
    real = stored.read

    def slow(*given):
        yield from real(*given)
        (folder / "prose.txt").write_text("Snow is white.\n", encoding="utf-8")

    monkeypatch.setattr(stored, "read", slow)
    with pytest.raises(DataError, match=r"prose.txt' was changed while it was read: begin again"):
        load(True)
    monkeypatch.setattr(stored, "read", real)
    assert any("Snow" in text for text in load(True).pretraining_data)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1", b"null", b'{"made_from": 3}'])
def test_a_damaged_cache_is_made_anew(load, damage):
    data = load(True)
    tokenizer = data.tokenizer("char")
    rows = encode_all(data.pretraining_data, begun(tokenizer), "")
    (place,) = default_cache().iterdir()
    for file in place.glob("*.json"):
        file.write_bytes(damage)
    again = load(True)
    assert again.report == data.report
    assert again.tokenizer("char").to_json() == tokenizer.to_json()
    same_rows(encode_all(again.pretraining_data, begun(tokenizer), ""), rows)


def test_a_cache_that_cannot_be_written(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write the token cache in .*--cache"):
        load(True, cache=tmp_path / "file")
    assert load(True, cache=tmp_path / "other").report.files
    assert len(list((tmp_path / "other").iterdir())) == 1


def test_data_without_a_text(load, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="holds no text"):
        load(True, tmp_path / "empty.txt")
    with pytest.raises(DataError, match="holds no text"):
        load(True, tmp_path / "empty.txt")


def test_small_data_and_standard_input_are_not_stored(load, monkeypatch):
    assert load(False).stored is None
    monkeypatch.setattr(stored, "LARGE", 0)
    assert not stored.Request.of([(["-"], "auto")], "auto").is_large()


KILLED = """
import sys
from rustgpt.text import sources, stored
from rustgpt.text.dataset import Dataset
stored.LARGE, sources.PIECE = 0, 40
print("ready", flush=True)
data = Dataset.load(sys.argv[1])
data.pretraining_data.rows(data.tokenizer("char"), "", True)
print("done", flush=True)
"""


@pytest.mark.slow
def test_who_is_killed_leaves_no_half_cache(load, folder):
    with (folder / "rows.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": f"Number {i}, {i * i}."}) + "\n" for i in range(20_000))
    expected = load(False)
    tokenizer = expected.tokenizer("char")
    rows = encode_all(expected.pretraining_data, begun(tokenizer), "")
    delays = np.linspace(0, 1.5, 12)
    for delay in delays:
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder)], stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        with process:
            process.stdout.readline()
            time.sleep(delay)
            process.kill()
    found = load(True)
    same_rows(encode_all(found.pretraining_data, begun(tokenizer), ""), rows)
    (place,) = default_cache().iterdir()
    assert not [file for file in place.iterdir() if file.suffix == ".new"]


def test_a_file_that_is_put_back_has_its_own_tokens(load, folder):
    """Not those of what stood there meanwhile; of a file that was added, none either."""
    file = folder / "prose.txt"
    text, stat = file.read_bytes(), file.stat()
    before = load(True)
    tokenizer = before.tokenizer("char")
    file.write_bytes(text.replace(b"Water", b"Paint"))
    (folder / "more.txt").write_text("Snow is white.\n", encoding="utf-8")
    with pytest.raises(DataError, match="was changed while it was read: begin again"):
        encode_all(before.pretraining_data, begun(tokenizer), "")
    (folder / "more.txt").unlink()
    file.write_bytes(text)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = encode_all(load(True).pretraining_data, begun(tokenizer), "")
    same_rows(found, encode_all(load(False).pretraining_data, begun(tokenizer), ""))


def test_a_training_ends_with_the_tokens_that_it_began_with(load, folder):
    first = load(True)
    tokenizer = first.tokenizer("char")
    rows = encode_all(first.tuning_data, begun(tokenizer), "assistant")
    (folder / "rows.jsonl").write_text(json.dumps(ITEMS[1]), encoding="utf-8")
    other = load(True)  # another process makes the same folder of the cache anew
    assert len(encode_all(other.tuning_data, begun(tokenizer), "assistant")) == 1
    assert encode_all(first.tuning_data, begun(tokenizer), "assistant") is rows
    assert len([*rows.cut(5)]) > len(rows) > 1


def test_a_cache_among_the_data_is_not_read(load, folder):
    found = [load(True, cache=folder / "cache") for _ in range(3)]
    assert [len(data.report.files) for data in found] == [2, 2, 2]
    assert len(list((folder / "cache").iterdir())) == 1


def test_texts_that_are_dialogues_keep_their_mask(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("User: a Assistant: b </s>\nUser: c Assistant: d e </s>\n")
    counts = []
    for large in (2**24, 0):
        monkeypatch.setattr(stored, "LARGE", large)
        data = Dataset.load(pretraining=tmp_path / "a.txt", cache=tmp_path / "cache")
        rows = encode_all(data.pretraining_data, begun(data.tokenizer("word")), "assistant")
        counts.append(rows.count_targets())
    assert counts[0] == counts[1] == 2 + 3  # the answers with their ends


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    monkeypatch.setattr(stored, "LARGE", 0)
    monkeypatch.setattr(stored, "SAMPLE", 2**14)
    monkeypatch.setattr(rows_module, "TOKENS_AT_ONCE", 2**16)
    monkeypatch.setattr(rows_module, "AT_ONCE", 2**12)
    size = 0
    with (tmp_path / "rows.jsonl").open("w") as file:
        while size < 4_000_000:
            size += file.write(json.dumps({"text": f"Number {size}. " * 15}) + "\n")
    tracemalloc.start()
    try:
        data = Dataset.load(tmp_path / "rows.jsonl")
        rows = encode_all(data.pretraining_data, begun(data.tokenizer("char")), "")
        learned, held_out = hold_out(rows, 0.01, 0)
        steps = steps_of_tokens(DataOrder(len(learned), 0, 0, 0), learned.cut(80).lengths, 1000)
        assert len(steps) * 1000 > size / 4
        assert len(learned) + len(held_out) == len(rows) > 15_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000  # in memory, the tokens alone would take 16 million
