"""JSON that is read in pieces: the same as `json` makes of the whole text, however it is cut."""

import json
import random
import re
import tracemalloc

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rustgpt.errors import DataError
from rustgpt.text.json_stream import DECODER, JsonStream, NotJson, is_one_value
from rustgpt.text.reading import FileReport, Report, read, read_source
from rustgpt.text.sources import Source, opened

from .generated import FORMS, mutants

FORMS_OF_JSON = [form for form in FORMS if form == "strings" or form.startswith("JSON")]
SIZES = (1, 2, 3, 5, 8, 13, 50)
ITEMS = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=30),
    lambda item: st.lists(item, max_size=3) | st.dictionaries(st.text(max_size=3), item),
    max_leaves=6,
)
SPACE = st.text(" \t\r\n", max_size=4)
SIGNS = '[]{}",:\\ue\n\r\t 0-.ENaInfity\ud83d\udc4d\ud800山👍\x0c\x00'


def cut(text, size):
    return [text[at : at + size] for at in range(0, len(text), size)]


def streamed(text, size):
    """Return the values of a text that comes in pieces, and what is wrong with it."""
    values = []
    try:
        for number, line, value in JsonStream(cut(text, size)).values():
            assert number == len(values) + 1
            values.append((line, value))
    except NotJson as error:
        return values, str(error)
    except RecursionError:
        return values, "too deep"
    return values, ""


def of_whole(text):
    """Return what `json` makes of a whole text: its values, or what is wrong with it."""
    at, values = len(text) - len(text.lstrip(" \t\r\n")), []
    try:
        if text[at : at + 1] == "[":
            return DECODER.decode(text), ""
        while not values or at < len(text):
            value, end = DECODER.raw_decode(text, at)
            values.append(value)
            at = len(text) - len(text[end:].lstrip(" \t\r\n"))
    except json.JSONDecodeError as error:
        return None, f"line {error.lineno}, column {error.colno}: {error.msg}"
    except RecursionError:
        return None, "too deep"
    return values, ""


def check(text):
    values, wrong = of_whole(text)
    for size in (*SIZES, len(text) + 1):
        found, error = streamed(text, size)
        if "Illegal trailing comma before end of array" in wrong and error != wrong:
            assert "Expecting value" in error  # only newer versions of json say it so
        else:
            assert error == wrong, size
        if not wrong:
            assert repr([value for _, value in found]) == repr(values), size


@settings(deadline=None)
@given(st.lists(st.tuples(SPACE, ITEMS, SPACE)), SPACE, st.booleans(), st.sampled_from((None, 1)))
def test_items_of_a_list_with_their_lines(items, end, ascii_only, indent):
    text, lines = "[", []
    for before, item, after in items:
        text += "," * bool(lines) + before
        lines.append(text.count("\n") + 1)
        text += json.dumps(item, ensure_ascii=ascii_only, indent=indent) + after
    text += "]" + end
    check(text)
    for size in SIZES:
        assert [line for line, _ in streamed(text, size)[0]] == lines


@settings(deadline=None)
@given(st.lists(st.tuples(ITEMS, st.sampled_from((" ", "\n", "\r\n ")))), SPACE)
def test_values_one_behind_another(items, before):
    check(before + "".join(json.dumps(item) + after for item, after in items))


@settings(deadline=None)
@given(ITEMS, st.data())
def test_a_damaged_list(item, data):
    text = json.dumps([item, "山", 12.5e3, item], indent=data.draw(st.sampled_from((None, 1))))
    begin = data.draw(st.integers(0, len(text)))
    end = min(len(text), begin + data.draw(st.integers(0, 3)))
    check(text[:begin] + data.draw(st.text(SIGNS, max_size=3)) + text[end:])
    check(text[:begin])


@settings(deadline=None)
@given(st.text(SIGNS, max_size=40))
@example("[1,]")
@example('{"a": 1,   ')
@example("[-Infinity, Infinity, NaN, -0.5e-7, 12e+7]")
@example("12e+")
@example('["\\ud83d\\udc4d", "\\ud83d"]')
@example('"abc')
@example("[" + "9" * 400 + ", 1]")
@example("[" * 5000)
@example('[{"a":' * 5000)
@example("\ufeff[]")
def test_any_text(text):
    check(text)


def test_a_cut_number_is_no_number():
    for text in ("12.5", "12e7", "-0.25E-10", "[1.5e+300,2]", "123456789"):
        for size in range(1, len(text) + 1):
            values, wrong = streamed(text, size)
            assert ([value for _, value in values], wrong) == of_whole(text)


@pytest.mark.parametrize(
    ("text", "one"),
    [
        *((text, True) for text in ("[]", "[1, 2]", '{"a": 1}', '"a"', ' "a" ', '["a"]\n')),
        *(
            (text, False)
            for text in ("", "1", "null", "[", "[1", '"a" "b"', "{}{}", "[] []", "[1],")
        ),
        ("[" * 5000, False),
    ],
)
def test_one_value(text, one):
    for size in SIZES:
        assert is_one_value(cut(text, size)) == one


def loaded(path):
    """Return the items of a file, its form and its report; or the error without its guess."""
    report = FileReport("")
    try:
        items = [*read_source(Source("x", path), report)]
    except DataError as error:
        return re.sub(" is not UTF-8.*", "", str(error))
    return items, report


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS_OF_JSON)
def test_files_are_the_same_in_any_pieces(tmp_path, monkeypatch, form):
    rng = random.Random(form)
    sound = [FORMS[form](rng)[:2] for _ in range(60)]
    for _, data in (*sound, *mutants(form, 200, seed=19)):
        path = tmp_path / rng.choice(("a.json", "a.jsonl"))
        path.write_bytes(data)
        whole = loaded(path)
        for size in rng.sample(range(1, 51), 4):
            with monkeypatch.context() as patch:
                patch.setattr("rustgpt.text.sources.READ", size)
                found = loaded(path)
            if isinstance(whole, str) and ("byte 0x" in whole or "NUL" in whole):
                assert isinstance(found, str)  # of two errors it may be the other
            else:
                assert found == whole, (size, data)


@pytest.mark.parametrize(
    "wrong", [b"\xff", b"\x80", b"\0", b"\xe5\xa4", b"\xf0\x9f\x99", b"\xc0\x80"]
)
@pytest.mark.parametrize(
    "before", ["", "ab\ncd", "\n", "山\n山👍", "ab" * 40, "\r\n" * 9 + "é" * 70]
)
def test_a_byte_that_is_no_text_has_line_and_column(tmp_path, monkeypatch, wrong, before):
    path = tmp_path / "a.json"
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    for after in (b"", b'"]', b"\nmore\n" * 20):
        path.write_bytes(before.encode() + wrong + after)
        for size in (*SIZES, 2**22):
            monkeypatch.setattr("rustgpt.text.sources.READ", size)
            with (
                opened(Source("x", path)) as content,
                pytest.raises(DataError, match=rf"^x, line {line}, column {column}: (byte|a NUL)"),
            ):
                "".join(content.decoded())


LARGE = {
    "one line": ('["', '", "', '"]'),
    "one line and more": ('["', '", "', '",\n"moss"]'),
    "lines": ('[\n"', '",\n"', '"\n]\n'),
    "values behind another": ('"', '"   "', '"\n'),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LARGE)
def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch, layout):
    monkeypatch.setattr("rustgpt.text.sources.READ", 2**18)
    path = tmp_path / "a.json"
    begin, between, end = LARGE[layout]
    sentence = "the wind turns at night 山 " * 40
    path.write_text(begin + between.join([sentence] * 20_000) + end, encoding="utf-8")
    assert path.stat().st_size > 20_000_000
    tracemalloc.start()
    try:
        number = sum(1 for _ in read(path, Report()))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert number >= 20_000
    assert peak < 4_000_000
