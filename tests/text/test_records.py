"""What one record means."""

from collections import Counter

import pytest

from rustgpt.text.dialogue import Dialogue
from rustgpt.text.records import Unusable, read_record

CHAT = "User: q Assistant: a </s>"
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def read(value, **more):
    item = read_record(value, Counter(), **more)
    return item.text() if isinstance(item, Dialogue) else item


@pytest.mark.parametrize(
    "value",
    [
        {"question": " q ", "answer": "a\n"},
        {"prompt": "q", "completion": "a </s>"},
        {"instruction": "q", "output": "a", "input": " "},
        {"instruction": "q", "output": "a", "input": None, "text": "q a"},
        {"messages": [USER, ANSWER], "question": None, "system": ""},
        {"messages": None, "question": "q", "answer": "a"},
        {"messages": [USER, ANSWER, {"role": "user", "content": "and?"}]},
        {"messages": [{"role": "user", "content": ["q"]}, ANSWER]},
        {"conversations": [{"from": "Human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": [{"role": None, "from": "human", "value": "q", "content": None}, ANSWER]},
        {"text": CHAT},
        [USER, ANSWER],
        CHAT,
    ],
)
def test_dialogues(value):
    assert read(value) == CHAT


def test_a_system_message_of_its_own():
    expected = "System: s User: q Assistant: a </s>"
    system = {"role": "developer", "content": "s"}
    assert read({"messages": [system, USER, ANSWER]}) == expected
    assert read({"question": "q", "answer": "a", "system": "s"}) == expected
    assert read({"conversations": [USER, ANSWER], "system": "s"}) == expected


def test_the_kind_that_is_asked_for():
    assert read("User: only", kind="texts") == "User: only </s>"
    assert read("User: only", kind="dialogues") == "User: only </s>"
    assert read("System: a set of things") == "System: a set of things </s>"
    assert isinstance(read_record(CHAT, Counter(), "texts"), str)
    assert isinstance(read_record({"prompt": "q", "completion": "a"}, Counter(), "texts"), str)
    assert isinstance(read_record(CHAT, Counter(), "dialogues"), Dialogue)


def test_the_form_that_is_asked_for():
    row = {"instruction": "q", "output": "a", "text": "whole"}
    assert read(row) == CHAT
    assert read(row, only="text-key") == "whole </s>"
    with pytest.raises(Unusable, match="'question' is missing"):
        read(row, only="question")


def test_what_is_ignored():
    ignored = Counter()
    read_record({"text": "t", "id": None}, ignored)
    read_record({"messages": [{**USER, "n": 1}, {**ANSWER, "n": 2}], "id": 3}, ignored)
    assert ignored == {"id": 2, "n": 1}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "it is null, not text"),
        (5.0, "it is a number"),
        (True, "it is true or false"),
        ([], "it is a list"),
        (["a"], "it is a list"),
        ({}, "its keys are none, but must be {messages} or"),
        ({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6}, "'e', ..., but must be"),
        ({"question": "q"}, "its keys are 'question', but must be {question, answer}"),
        ({"question": "q", "answer": None}, "'answer' is null"),
        ({"question": "q", "answer": ["a", 1]}, "'answer' is a number"),
        ({"question": " ", "answer": "a"}, "'question' is empty"),
        ({"question": "q", "answer": "</s>"}, "'answer' is empty"),
        ({"text": None}, "'text' is null"),
        ({"text": "\ud800"}, "'text' is text with half of a character"),
        ("User: q", "a dialogue must be 'User: ... Assistant: ...'"),
        ({"messages": "q"}, "'messages' is no list"),
        ({"messages": []}, "no question of a user with an answer behind it"),
        ({"messages": [USER]}, "no question of a user"),
        ({"messages": [ANSWER]}, "no question of a user"),
        ({"messages": ["q", ANSWER]}, "message 1 is no object"),
        ({"messages": [USER, {"role": "tool", "content": "a"}]}, "message 2 is of 'tool', not"),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2 is null, not text"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "image"}]}]}, "'image'"),
    ],
)  # fmt: skip
def test_what_cannot_be_used(value, reason):
    with pytest.raises(Unusable) as caught:
        read(value)
    assert reason in str(caught.value)
