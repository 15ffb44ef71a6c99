"""Bytes that arrive one by one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rustgpt.text.utf8 import Utf8Stream


def decode(data: bytes) -> list[str]:
    stream = Utf8Stream()
    return [*map(stream.push, data), stream.finish()]


@settings(deadline=None)
@given(st.text(st.characters(), max_size=20))
def test_whole_characters(text):
    assert "".join(decode(text.encode("utf-8", "surrogatepass"))) == text


@settings(deadline=None)
@given(st.binary(max_size=20))
def test_valid_utf8_is_decoded_and_all_else_replaced(data):
    decoded = "".join(decode(data))
    try:
        assert decoded == data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        assert "\ufffd" in decoded


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\xe5\xb1\xb1b", ["a", "", "", "山", "b", ""]),
        (b"\xf0\x9f\x91\x8d", ["", "", "", "👍", ""]),
        (b"\xed\xa0\x80", ["", "", "\ud800", ""]),
        (b"\xe5\xb1", ["", "", "\ufffd"]),
        (b"\xe5\xb1a", ["", "", "\ufffda", ""]),
        (b"\xe5\xe5\xb1\xb1", ["", "\ufffd", "", "山", ""]),
        (b"\x80\xff", ["\ufffd", "\ufffd", ""]),
        (b"\xc0\x80", ["\ufffd", "\ufffd", ""]),  # NUL in two bytes
        (b"\xe0\x80\x80", ["", "", "\ufffd\ufffd\ufffd", ""]),
        (b"\xf4\x90\x80\x80", ["", "", "", "\ufffd\ufffd\ufffd\ufffd", ""]),  # above U+10FFFF
        (b"\xf5a", ["\ufffd", "a", ""]),
    ],
)
def test_each_character_appears_with_its_last_byte(data, expected):
    assert decode(data) == expected


def test_finish_forgets():
    stream = Utf8Stream()
    stream.push(0xE5)
    assert stream.finish() == "\ufffd"
    assert stream.finish() == ""
    assert stream.push(0x41) == "A"
