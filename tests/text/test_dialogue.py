"""The form of a dialogue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustgpt.errors import DataError
from rustgpt.text.dialogue import Dialogue, Message, split_chat

ROLES = {"S": "system", "U": "user", "A": "assistant"}


def dialogue(*said: str) -> Dialogue:
    """dialogue("U hi", "A hello")"""
    return Dialogue(tuple(Message(ROLES[text[0]], text[2:]) for text in said))


PARSED = [
    ("User: Hi! Assistant: Hello! </s>", ["U Hi!", "A Hello!"]),
    ("User: Hi! Assistant: Hello!", ["U Hi!", "A Hello!"]),
    (" User: a b  Assistant:  c d  </s>\n", ["U a b", "A c d"]),
    ("User: 山？ Assistant: 山。 </s>", ["U 山？", "A 山。"]),
    ("User: Hi!\nAssistant: Hello,\nyou\n", ["U Hi!", "A Hello,\nyou"]),
    ("User: a Assistant: b </s> User: c Assistant: d </s>", ["U a", "A b", "U c", "A d"]),
    ("User: a Assistant: b User: c Assistant: d", ["U a", "A b", "U c", "A d"]),
    ("System: S User: a Assistant: b </s>", ["S S", "U a", "A b"]),
    (
        "User: a Assistant: b </s> System: S User: c Assistant: d",
        ["U a", "A b", "S S", "U c", "A d"],
    ),
    # names of roles within what is said
    ("User: a Assistant: the solar System: nine", ["U a", "A the solar System: nine"]),
    ("User: a Assistant: b User: c", ["U a", "A b User: c"]),
    ("User: a Assistant: b Assistant: c", ["U a", "A b Assistant: c"]),
    ("User: SuperUser: a Assistant: b", ["U SuperUser: a", "A b"]),
]


@pytest.mark.parametrize(("text", "said"), PARSED)
def test_parse(text, said):
    assert Dialogue.parse(text) == dialogue(*said)


@pytest.mark.parametrize(
    "text",
    [
        *("", "The sun </s>", "User: Hi!", "Assistant: Hello!", "user: Hi! assistant: Hello!"),
        *("User: Assistant: Hello!", "User: Hi! Assistant: </s>", "Hi! Assistant: Hello!"),
        *("System: a Assistant: b", "x User: a Assistant: b", "User:a" * 99, "\n" * 1000 + "x"),
        *("User: a Assistant: b </s> User: Assistant: d", "UserAssistant:"),
    ],
)
def test_parse_refuses_other_text(text):
    with pytest.raises(DataError, match=r"^a dialogue must be [^\n]{1,150}$"):
        Dialogue.parse(text)


def test_a_megabyte_of_names():
    text = "User: a Assistant: b" + " System:" * 200_000
    assert [len(one.content) for one in Dialogue.parse(text).messages] == [1, 1 + 200_000 * 8]


CONTENT = st.text("ab: .\n山</s>", min_size=1, max_size=9).filter(
    lambda text: text == text.strip() and not text.endswith("</s>")
)


@given(st.lists(st.tuples(CONTENT, CONTENT), min_size=1, max_size=3), st.none() | CONTENT)
def test_text_is_read_again(turns, system):
    said = [Message("system", system)] if system else []
    for question, answer in turns:
        said += [Message("user", question), Message("assistant", answer)]
    whole = Dialogue(tuple(said))
    assert Dialogue.parse(whole.text()) == whole


def test_the_first_question_and_its_answer():
    assert split_chat("User: 山？ Assistant: 山。 </s>") == ("山？", "山。")
    assert split_chat("System: x User: a Assistant: b User: c Assistant: d") == ("a", "b")
