"""Training data from files, good and bad."""

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.dataset import Dataset
from rustgpt.text.dialogue import split_chat


@pytest.fixture
def save(tmp_path):
    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def load_texts(path):
    """Read a file as texts."""
    return Dataset.load(pretraining=path).pretraining_data


# --- what is read --------------------------------------------------------------------------------

GOOD = [
    ("a.json", '["The sun </s>", "The moon"]', ["The sun </s>", "The moon </s>"]),
    ("a.JSON", '["sun"]', ["sun </s>"]),
    ("a.json", '\n [ "  sun\\n",\r\n "", " ", "</s>", " </s> " ]', ["sun </s>"]),
    ("a.json", '\ufeff["sun", "山\\u5c71\\ud83d\\udc4d"]', ["sun </s>", "山山👍 </s>"]),
    ("a.json", '["a\\nb", "a\\u0000b", "a\u2028b"]', ["a\nb </s>", "a\0b </s>", "a\u2028b </s>"]),
    ("a.json", '["sun</s>", "sun </s>  "]', ["sun</s>", "sun </s>"]),
    ("a.csv", "The sun rises </s>\nThe moon\n", ["The sun rises </s>", "The moon </s>"]),
    ("a.csv", '"Yes, it is",a,b\n\nno\n', ["Yes, it is,a,b </s>", "no </s>"]),
    ("a.CSV", '\ufeff"say ""hi"""\r\n"two\r\nlines"\r\n', ['say "hi" </s>', "two\nlines </s>"]),
    (
        "a.csv",
        "one\ntwo,three\nfour,five,six",
        ["one </s>", "two,three </s>", "four,five,six </s>"],
    ),
    ("a.csv", "山,水\u2028x\n", ["山,水\u2028x </s>"]),
    ("a.txt", "The sun </s>\n\n  \nThe moon", ["The sun </s>", "The moon </s>"]),
    ("a.txt", "\ufeffsun\r\nmoon\r\nstar\r\n\r\n", ["sun </s>", "moon </s>", "star </s>"]),
    ("a.txt", "\ufeffsun,\r\nmoon\r\n\r\n", ["sun,\nmoon </s>"]),
    ("a.txt", "a\u2028b\x0bc\x0cd\x85e\rf\n", ["a\u2028b\x0bc\x0cd\x85e\rf </s>"]),
    ("data", "  sun \nmoon", ["sun \nmoon </s>"]),
    ("a.text", '["JSON"]', ["JSON </s>"]),
    ("a.json", '"sun"', ["sun </s>"]),
    ("a.json", '["sun", null, 5, true, ["a"], {"a": 1}, "a\\ud800b"]', ["sun </s>"]),
    ("a.csv", "sun,moon\nstar,sky", ["sun,moon </s>", "star,sky </s>"]),
    ("a.csv", 'id,saying\n1,"Moles dig."', ["1,Moles dig. </s>"]),
    ("a.csv", "text,x,x\nMoles dig.,1,2", ["Moles dig. </s>"]),
    ("a.tsv", "sun\tmoon", ["sun\tmoon </s>"]),
    ("a.json", '["sun"]'.encode("utf-16"), ["sun </s>"]),
    ("a.csv", "sun".encode("utf-32"), ["sun </s>"]),
    ("a.txt", b"\xfe\xff\x00s\x00u", ["su </s>"]),
    ("a.txt", "User: a guide, no dialogue", ["User: a guide, no dialogue </s>"]),
    ("a.json", '["User: Hi! Assistant: Ho!"]', ["User: Hi! Assistant: Ho! </s>"]),
]


@pytest.mark.parametrize(("name", "content", "texts"), GOOD)
def test_load_texts(save, name, content, texts):
    assert load_texts(save(name, content)) == texts
    assert load_texts(str(save(name, content))) == texts


def test_load_takes_one_file_or_both(save):
    facts, chat = save("facts.txt", "sun"), save("chat.json", '["moon"]')
    assert Dataset.load(pretraining=facts, chat=chat) == Dataset(["sun </s>"], ["moon </s>"])
    assert Dataset.load(pretraining=facts) == Dataset(["sun </s>"], [])
    assert Dataset.load(chat=chat) == Dataset([], ["moon </s>"])
    with pytest.raises(DataError, match="no data to load"):
        Dataset.load()


def test_bundled():
    english, chinese, both = (Dataset.bundled(name) for name in ("en", "zh", "all"))
    assert both.pretraining_data == english.pretraining_data + chinese.pretraining_data
    assert both.chat_training_data == english.chat_training_data + chinese.chat_training_data
    assert Dataset.bundled() == both
    for data in (english, chinese):
        assert len(data.pretraining_data) > 20
        assert all(text.endswith(" </s>") for text in data.pretraining_data)
        assert all(split_chat(text) for text in data.chat_training_data)
    assert "".join(english.pretraining_data).isascii()
    assert "山" in "".join(chinese.chat_training_data)


@pytest.mark.parametrize("language", ["", "EN", "de", None])
def test_bundled_in_another_language(language):
    with pytest.raises(ConfigError, match="must be en, zh or all"):
        Dataset.bundled(language)


@pytest.mark.slow
def test_one_line_of_100_megabytes(tmp_path):
    path = tmp_path / "large.txt"
    size = 100_000_000
    path.write_bytes(b"x" * (size - 1) + b"\n")
    tracemalloc.start()
    try:
        texts = load_texts(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(text) for text in texts] == [size - 1 + len(" </s>")]
    assert peak < 3.01 * size


# --- what is refused -----------------------------------------------------------------------------

BAD = [
    # any form
    ("a.json", b"", "line 1, column 1: Expecting value"),
    ("a.csv", b"", "nothing to train on"),
    ("a.txt", b"", "nothing to train on"),
    ("a.txt", b"\xef\xbb\xbf", "nothing to train on"),
    ("a.txt", " \r\n\t\n\u3000\n".encode(), "nothing to train on"),
    ("a.csv", b"\n \n\t\n", "nothing to train on"),
    ("a.json", b" \n ", "line 2, column 2: Expecting value"),
    ("a.txt", "sun".encode("utf-16-le"), "line 1, column 2: a NUL byte"),
    ("a.json", b'["sun",\n"\xff"]', "line 2, column 2: byte 0xFF is not UTF-8"),
    ("a.csv", "sun\n山,\xff".encode("latin-1", "replace"), "line 2, column 3: byte 0xFF"),
    ("a.txt", "sun\n山山".encode() + b"\xe5\xb1\nmoon", "line 2, column 3: byte 0xE5 is not UTF-8"),
    ("a.txt", b"\xef\xbb\xbfsun \x80", "line 1, column 5: byte 0x80 is not UTF-8"),
    ("a.txt", b"\xed\xa0\x80", "line 1, column 1: byte 0xED is not UTF-8"),
    ("a.txt", b"sun\n\x7fELF\x02\x00\x00", "line 2, column 6: a NUL byte"),
    ("a.json", b'["sun\x00"]', "line 1, column 6: a NUL byte"),
    ("a.csv", b"sun\nmoon\x00", "line 2, column 5: a NUL byte"),
    # JSON
    ("a.json", b"[" * 100_000, "nested too deeply"),
    ("a.json", b'{"a":' * 100_000, "nested too deeply"),
    ("a.json", b'["sun",\n  moon]', "line 2, column 3: Expecting value"),
    ("a.json", b'["sun"', "line 1, column 7: Expecting ',' delimiter"),
    ("a.json", b'["sun"] x', "line 1, column 9: Extra data"),
    ("a.json", b'["s\nun"]', "line 1, column 4: Invalid control character"),
    ("a.json", b'["sun"]["moon"]', "Extra data"),
    ("a.json", b"[]", "nothing to train on"),
    ("a.json", b'["", " \\n", "</s>"]', "nothing to train on"),
    ("a.json", b"null", "row 1: it is null, not text"),
    ("a.json", b"NaN", "row 1: it is a number, not text"),
    ("a.json", b"9" * 5_000, "row 1: it is a number, not text"),
    ("a.json", b"[\n5]", "row 1 (line 2): it is a number, not text"),
    ("a.json", b'["\\udc00\\ud800"]', "row 1: it is text with half of a character"),
    ("a.json", b'{"a": "sun", "a": "moon"}', "row 1: a key stands twice in it"),
    ("a.json", b'{"b": "sun"}', "row 1: its keys are 'b', but must be {messages} or "),
    (
        "a.json",
        b'{"answer": "sun"}',
        "row 1: its keys are 'answer', but must be {question, answer}",
    ),
    ("a.json", b'[{"text": "sun"}, {"text": ]', "line 1, column 28: Expecting value"),
    ("a.jsonl", b'{"text": "sun"\n{"text": 5}', "row 1: column 15: Expecting ',' delimiter"),
    ("a.jsonl", b'{"text": 5}\n' + b"[" * 100_000, "row 1: 'text' is a number, not text"),
    # encodings
    ("a.txt", b"\xff\xfea", "is in UTF-16 and damaged"),
    ("a.txt", "caf\xe9s au lait".encode("latin-1"), "iconv -f WINDOWS-1252 -t UTF-8"),
    ("a.txt", "夜里猫头鹰".encode("gb18030"), "iconv -f GB18030 -t UTF-8"),
    # CSV
    ("a.csv", b"question,answer,question\nq,a,q", "has two columns of the name 'question'"),
    ("a.csv", b"question,answer\nq", "row 2: it has 1 fields, and the header 2"),
    ("a.csv", b'sun\nmoon\n"star\nsky\n', "record from line 3 on: unexpected end of data"),
    ("a.csv", b'sun\n"a"b\n', "record from line 2 on: "),
    ("a.csv", b"sun\n" + b"x" * 131_073, "record from line 2 on: field larger than field limit"),
    ("a.csv", b'"sun' + b"\nmoon" * 30_000, "record from line 1 on: field larger"),
    ("a.csv", b"sun\rmoon\n", "record from line 1 on: new-line character"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD, ids=range(len(BAD)))
def test_bad_files(save, name, content, message):
    path = save(name, content)
    with pytest.raises(DataError) as caught:
        load_texts(path)
    assert message in str(caught.value)
    assert repr(str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 250


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
@pytest.mark.parametrize("content", ['"a"b\nmore\n', b'"\xff"', b"good\nbad\0"])
def test_a_bad_file_is_closed_at_once(save, monkeypatch, name, content):
    path, opened, original = save(name, content), [], Path.open

    def noted(self, *mode):
        opened.append(original(self, *mode))
        return opened[-1]

    monkeypatch.setattr(Path, "open", noted)
    with pytest.raises(DataError) as caught:  # which keeps alive what its traceback sees
        load_texts(path)
    assert [file.closed for file in opened] == [True], caught


def test_longest_csv_field(save):
    assert [len(text) for text in load_texts(save("a.csv", "x" * 131_072))] == [131_077]


@pytest.mark.parametrize("name", ["missing.json", "missing.csv", "missing.txt"])
def test_missing_file(tmp_path, name):
    with pytest.raises(DataError, match=r"cannot read '.*missing.*': No such file"):
        load_texts(tmp_path / name)


@pytest.mark.parametrize("name", ["folder.json", "folder.csv", "folder"])
def test_an_empty_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="holds no file to read"):
        load_texts(tmp_path / name)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), "cannot read .*: Permission denied; check"),
        (OSError("strange"), "cannot read .*: strange; check"),
        (MemoryError(), "cannot read .*: it needs more memory than there is"),
    ],
)
@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.txt"])
def test_the_system_refuses(save, monkeypatch, name, error, message):
    def refuse(*_: object, **__: object) -> None:
        raise error

    path = save(name, "sun")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=message):
        load_texts(path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may read everything")
def test_no_permission(save):
    path = save("a.txt", "sun")
    path.chmod(0)
    with pytest.raises(DataError, match="Permission denied"):
        load_texts(path)


@pytest.mark.parametrize("path", ["a\0b.json", "\ud800.txt", "", "line\nbreak\x1b[31m.csv"])
def test_strange_names_are_shown_harmlessly(path):
    with pytest.raises(DataError, match=r"^cannot read ") as caught:
        load_texts(path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("path", [3, b"a.txt", 1.5, [None], [[]], True])
def test_what_is_no_name(path):
    with pytest.raises(DataError, match="a file must be named by text, not by"):
        load_texts(path)


@settings(deadline=None)
@given(st.sampled_from([".json", ".csv", ".txt"]), st.binary(max_size=60))
def test_any_bytes(tmp_path_factory, suffix, content):
    check_any(tmp_path_factory.getbasetemp() / f"any{suffix}", content)


@settings(deadline=None)
@given(st.sampled_from([".json", ".csv"]), st.text('[]{}",:\\ue\n\r\t 0-.ENa\ud7ff🙂', max_size=40))
def test_any_signs(tmp_path_factory, suffix, content):
    check_any(tmp_path_factory.getbasetemp() / f"any{suffix}", content.encode())


def check_any(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    message, texts = "", ["</s>"]
    try:
        texts = load_texts(path)
    except DataError as error:
        message = str(error)
    assert message.isprintable()
    assert texts
    assert all(text.endswith("</s>") for text in texts)
    assert all(text.encode() for text in texts)  # no half of a character
