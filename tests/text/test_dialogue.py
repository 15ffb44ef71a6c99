"""The form of a dialogue, and where its loss counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.dialogue import Dialogue, Message, chat_prompt, encode_dialogue, split_chat
from rustgpt.text.tokenizer import WordTokenizer

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


def test_a_prompt_is_the_beginning_of_a_dialogue():
    assert chat_prompt("Hi!") == "User: Hi! Assistant:"
    assert split_chat(chat_prompt("山？") + " 山。 </s>") == ("山？", "山。")
    assert split_chat("System: x User: a Assistant: b User: c Assistant: d") == ("a", "b")


# Token ids


class Merging:
    """Characters as tokens, but two of them together are one where the second is given."""

    vocab_size, end_id = 0x20000, 0x1FFFF

    def __init__(self, merged: str) -> None:
        self.merged = merged

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        assert not allow_special  # what people write never becomes the end token
        ids: list[int] = []
        for sign in text:
            if sign == self.merged and ids and ids[-1] < 0x10000:
                ids[-1] += 0x10000
            else:
                ids.append(ord(sign) % 0x10000)
        return ids


def learned(tokenizer, row):
    """Return the runs of tokens that count."""
    runs, ids = [[]], row.ids.tolist()
    for token, counts in zip(ids[1:], row.counted.tolist(), strict=True):
        if counts:
            runs[-1].append(token)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


TWO = dialogue("S Be kind.", "U Is it? a", "A a b.", "U And?", "A No </s> no")


def test_words_count_where_the_assistant_speaks():
    tokenizer = WordTokenizer.train([TWO.text()])
    row = encode_dialogue(tokenizer, TWO)
    end = tokenizer.end_id
    assert row.ids.dtype == "int32"
    assert learned(tokenizer, row) == [
        [*tokenizer.encode("a b."), end],
        [*tokenizer.encode("No </s> no"), end],
    ]
    assert row.ids.tolist().count(end) == 2
    one = dialogue("U Is it? a", "A a b.")
    assert encode_dialogue(tokenizer, one).ids.tolist() == tokenizer.encode(one.text(), True)


@pytest.mark.parametrize("merged", ["", "a", "b", " ", ":", ".", "N"])
def test_any_tokenizer(merged):
    tokenizer = Merging(merged)
    row = encode_dialogue(tokenizer, TWO)
    found = []
    for run in learned(tokenizer, row):
        assert run.pop() == tokenizer.end_id
        found.append(run)
    for run, answer in zip(found, (" a b.", " No </s> no"), strict=True):
        # The space may be one token with the colon before it, and is then learned with it.
        assert run in (tokenizer.encode(answer), tokenizer.encode(":" + answer))
    assert len(row.counted) == len(row.ids) - 1


def test_the_loss_on_all():
    tokenizer = Merging("")
    row = encode_dialogue(tokenizer, TWO, "all")
    assert row.counted is None
    assert row.ids.tolist() == encode_dialogue(tokenizer, TWO).ids.tolist()
    with pytest.raises(ConfigError, match="assistant or all"):
        encode_dialogue(tokenizer, TWO, "user")
