"""How text is cut, and where spaces are expected."""

import pytest

from rustgpt.text.units import Spacing, cut, kinds_of


def units(text: str) -> list[str]:
    return [unit for _, unit, _, _ in cut(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("The sun rises", ["The", "sun", "rises"]),
        ("it's state-of-the-art", ["it", "'", "s", "state", "-", "of", "-", "the", "-", "art"]),
        ("299,792", ["299", ",", "792"]),
        ("C++, U.S.", ["C", "+", "+", ",", "U", ".", "S", "."]),
        ("</s><join>##x", ["<", "/", "s", ">", "<", "join", ">", "#", "#", "x"]),
        ("山是怎样形成的？", ["山", "是", "怎", "样", "形", "成", "的", "？"]),
        ("第3章abc", ["第", "3", "章", "abc"]),
        ("ひらカナ한글", ["ひ", "ら", "カ", "ナ", "한", "글"]),
        ("Ünïcödé cafe\u0301", ["Ünïcödé", "cafe\u0301"]),
        (" a  b\n\tc ", [" ", "a", " ", " ", "b", "\n", "\t", "c", " "]),
        ("👍👍", ["👍", "👍"]),
        ("\U00030000\U00030001", ["\U00030000", "\U00030001"]),
    ],
)
def test_cut(text, expected):
    assert units(text) == expected


def test_only_a_space_alone_between_two_units_belongs_to_neither():
    assert [spaced for spaced, _, _, _ in cut(" a b  c\n d ")] == [
        *(False, False),  # " a"
        *(True, False, False, False),  # "b", two spaces, "c"
        *(False, False, False, False),  # line break, space, "d", space
    ]


def test_code_points_without_a_character_are_cut_alike_by_every_python():
    # Unassigned in Unicode 14 to 16; emoji of Unicode 16 are unassigned in Python 3.11.
    assert kinds_of("\u0378\U0001fadf") == "++"


def typical(text: str) -> str:
    """Write the units of a text with nothing but predicted spaces."""
    spacing, written = Spacing(), ""
    for _, unit, first, last in cut(text):
        written += (" " if spacing.space_before(first) else "") + unit
        spacing.advance(last)
    return written


@pytest.mark.parametrize(
    "text",
    [
        "User: How fast does light travel? Assistant: At 299,792 kilometers per second.",
        "It's a state-of-the-art and/or long-term plan; isn't it?",
        'He said "yes" and "no", then left (at 10:30, with $5 and 3.14% [of it]).',
        "“Curly quotes” are known—and dashes",
        "x = a + b",
        "Wow!!! And so on...",
        "It is 20°, they say",
        'A stray "quote ends with its line\nand "this" is right again',
        "User: 山是怎样形成的？ Assistant: 山是由地壳运动形成的。",
        "光每秒走299,792公里，声音很慢；水在100度时沸腾（海平面）。",
        "他说：“你好，世界！”《论语》是孔子的书、很有名。",
        "I like it 👍👍 and ❤️ too ❤️👍👩\u200d👩\u200d👧",
        "9. A list of: 5 things",
        "1. 山",
    ],
)
def test_spaces_of_ordinary_text_are_predicted(text):
    assert typical(text) == text
