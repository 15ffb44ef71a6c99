"""What data are to a tokenizer and a context."""

import pytest

from rustgpt.text.dataset import Dataset
from rustgpt.text.pieces import encode_text
from rustgpt.text.summary import examples, summarize
from rustgpt.text.text_format import TextFormat

NAMES = ["anneke", "bjarne", "cosima"]
CHATS = [
    "User: What do moles dig? Assistant: Tunnels, mostly. </s>",
    "System: Be brief. User: Is tar sticky? Assistant: Yes. </s> "
    "User: And glass? Assistant: No. </s>",
]


def begun(tokenizer):
    return TextFormat(tokenizer, tokenizer.end_id)


def summary_of(texts, chats, context=80, bos=True, **more):
    data = Dataset([f"{text} </s>" for text in texts], chats)
    tokenizer = data.tokenizer()
    return summarize(data, begun(tokenizer) if bos else TextFormat(tokenizer), context, **more)


def test_counts():
    found = summary_of(["Moles dig.", "山水"], CHATS)
    assert (found.texts.rows, found.dialogues.rows) == (2, 2)
    assert found.texts.tokens == 5 + 4  # with the end token on both sides
    assert found.bytes == 10 + 6 + sum(len(text) - 5 for text in CHATS)
    assert found.tokens_per_byte == found.tokens / found.bytes
    assert (found.longest, found.spelled, found.texts.cut) == (27, 0, 0)
    assert found.whole


def test_pieces_of_unknown_words_are_counted():
    data = Dataset(["Moles dig. </s>"], [])
    others = Dataset(["Voles dig! </s>"], [])
    found = summarize(others, begun(data.tokenizer()), 80)
    tokens = data.tokenizer().tokens("Voles dig!")
    assert found.spelled == sum(token[:2] in ("##", "<0") for token in tokens) > 0


def test_a_text_of_single_tokens_is_warned_of():
    assert "each text is a single token" in summary_of(NAMES, []).warnings()[0]
    assert not any("single" in text for text in summary_of([*NAMES, "Moles dig."], []).warnings())


def test_small_data_are_warned_of():
    assert any("too few to learn" in text for text in summary_of(["Moles dig."], []).warnings())
    assert summary_of(["Moles dig. " * 400], []).warnings() == []


def test_the_beginning_alone():
    texts = ["Moles dig."] * 3  # of 15 characters each with the end token
    for most, rows, tokens in ((15, 1, 5), (20, 2, 7), (30, 2, 10), (31, 3, 12)):
        found = summary_of(texts, CHATS, most=most)
        assert (found.texts.rows, found.texts.tokens, found.whole) == (rows, tokens, False)
        assert found.dialogues.rows == 0
        assert found.warnings() == []
    both = sum(map(len, CHATS))
    for most, dialogues, whole in ((45, 0, 0), (46, 1, 0), (44 + both, 2, 1), (10**9, 2, 1)):
        found = summary_of(texts, CHATS, most=most)
        assert (found.texts.rows, found.dialogues.rows, found.whole) == (3, dialogues, whole)
    assert found == summary_of(texts, CHATS)


def test_dialogues_that_do_not_fit_are_warned_of():
    found = summary_of([], CHATS * 40, context=20)
    assert (found.dialogues.cut, found.dialogues.masked) == (40, 0)
    assert found.warnings() == [
        "40 of 80 dialogues are longer than the context of 20 tokens and will be cut: a larger "
        "--max-seq-len keeps them whole"
    ]
    assert summary_of([], CHATS, context=26).dialogues.cut == 0
    assert summary_of([], CHATS, context=25).dialogues.cut == 1
    assert summary_of([], CHATS, context=25, bos=False).dialogues.cut == 0


def test_dialogues_without_a_counted_token_are_warned_of():
    found = summary_of([], CHATS * 40, context=7)
    assert found.dialogues.masked == 80
    assert "in 80 of 80 dialogues the answer begins behind the context" in found.warnings()[1]
    assert summary_of([], CHATS, context=10).dialogues.masked == 1
    assert summary_of([], CHATS, context=7, loss_on="all").dialogues.masked == 0


def test_examples_are_marked_where_the_loss_counts():
    data = Dataset(["Moles dig. </s>", "Tar </s>"], CHATS)
    tokenizer = data.tokenizer()
    assert examples(data, begun(tokenizer), 80, 1) == [
        [("</s>", False), ("Moles dig.</s>", True)],
        [("</s>User: What do moles dig? Assistant:", False), (" Tunnels, mostly.</s>", True)],
    ]
    both = examples(data, begun(tokenizer), 80, 2)
    assert [counts for _, counts in both[3]] == [False, True, False, True]
    assert examples(data, begun(tokenizer), 80, 0) == []
    short = examples(data, begun(tokenizer), 2, 1)
    assert short[0] == [("</s>", False), ("Moles dig", True)]
    assert examples(data, begun(tokenizer), 80, 1, "all")[1][0] == ("</s>", False)
    assert examples(data, TextFormat(tokenizer), 80, 1)[0][0] == ("Moles", False)


@pytest.mark.parametrize("context", [1, 5])
def test_nothing_is_lost_by_the_marks(context):
    data = Dataset(["Moles dig, don't they? </s>"], CHATS)
    tokenizer = data.tokenizer()
    ids = encode_text(data.pretraining_data[0], begun(tokenizer))
    whole = tokenizer.decode(ids[: context + 1], False)
    assert "".join(text for text, _ in examples(data, begun(tokenizer), context, 1)[0]) == whole
