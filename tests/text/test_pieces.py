"""Tests of how texts become the rows of a training."""

import numpy as np
import pytest

from rustgpt.text.pieces import FEW, checked, encode_text, hold_out
from rustgpt.text.rows import Row, Rows, count_targets, ids_of, targets_of
from rustgpt.text.text_format import TextFormat
from rustgpt.text.tokenizer import WordTokenizer


def texts(*lengths):
    """Return texts of so many tokens, all of different ids."""
    ends = np.cumsum(lengths)
    return [np.arange(end - n, end, dtype=np.int32) for end, n in zip(ends, lengths, strict=True)]


def as_lists(rows):
    return [ids_of(row).tolist() for row in rows]


def test_targets_that_do_not_count_are_minus_one():
    ids = np.array([3, 4, 5, 6], np.int32)
    row = Row(ids, np.array([True, False, True]))
    assert targets_of(row).tolist() == [4, -1, 6]
    assert targets_of(row).dtype == np.int32
    assert targets_of(ids).tolist() == targets_of(Row(ids)).tolist() == [4, 5, 6]
    assert (len(row), count_targets([row, ids, Row(ids)])) == (4, 8)
    assert count_targets([ids[:0], ids[:1]]) == 0


def test_a_row_that_counts_everywhere_is_its_ids():
    ids = np.array([3, 4, 5], np.int32)
    assert isinstance(checked(Row(ids, np.array([True, True])), 9), np.ndarray)
    assert isinstance(checked(Row(ids), 9), np.ndarray)
    assert isinstance(checked(Row(ids, np.array([True, False])), 9), Row)


def test_pieces_overlap_by_the_token_that_is_predicted_and_then_read():
    (text,) = texts(9)
    mask = np.arange(8) % 3 == 0
    pieces = Rows.of([Row(text, mask), texts(1)[0], texts(0)[0]]).cut(4)
    assert as_lists(pieces) == [[0, 1, 2, 3, 4], [4, 5, 6, 7, 8]]
    assert np.concatenate([piece.counted for piece in pieces]).tolist() == mask.tolist()
    assert as_lists(Rows.of([text]).cut(7)) == [list(range(8)), [7, 8]]


def test_whole_texts_are_held_out():
    rows = texts(*[5] * 30)
    learned, held_out = hold_out(Rows.of(rows), 0.1, 7)
    assert (len(learned), len(held_out)) == (27, 3)
    assert sorted(as_lists(learned) + as_lists(held_out)) == as_lists(rows)
    assert as_lists(learned) == sorted(as_lists(learned))  # in their order
    assert as_lists(hold_out(Rows.of(rows), 0.1, 7)[1]) == as_lists(held_out)
    assert len({str(as_lists(hold_out(Rows.of(rows), 0.1, seed)[1])) for seed in range(9)}) > 5
    assert len(hold_out(Rows.of(texts(*[5] * FEW)), 0.01, 0)[1]) == 1


@pytest.mark.parametrize("n", [1, 2, FEW - 1])
def test_of_few_texts_the_end_of_each_is_held_out(n):
    rows = texts(*[100] * n)
    learned, held_out = hold_out(Rows.of(rows), 0.1, 0)
    assert [len(row) for row in learned] == [90] * n
    assert [len(row) for row in held_out] == [10] * n
    assert [a + b for a, b in zip(as_lists(learned), as_lists(held_out), strict=True)] == (
        as_lists(rows)
    )
    masked = Row(rows[0], np.arange(99) % 2 == 0)
    (learned,), (held_out,) = hold_out(Rows.of([masked]), 0.2, 0)
    assert learned.counted.tolist() == masked.counted[:79].tolist()
    assert held_out.counted.tolist() == masked.counted[80:].tolist()


def test_a_text_too_short_to_be_divided_is_learned_whole():
    learned, held_out = hold_out(Rows.of(texts(100, 12)), 0.1, 0)
    assert ([len(row) for row in learned], [len(row) for row in held_out]) == ([90, 12], [10])
    for rows in (texts(4, 5), texts(*[1] * 20), []):
        assert as_lists(hold_out(Rows.of(rows), 0.1, 0)[0]) == as_lists(rows)
        assert len(hold_out(Rows.of(rows), 0.1, 0)[1]) == 0


def test_what_is_held_out_has_something_that_counts():
    rows = [Row(ids, np.zeros(4, bool)) for ids in texts(*[5] * 20)]
    learned, held_out = hold_out(Rows.of(rows), 0.2, 0)
    assert (as_lists(learned), len(held_out)) == (as_lists(rows), 0)


def test_a_text_of_any_form():
    text = "User: What is red? Assistant: The sun </s>"
    tokenizer = WordTokenizer.train([text])
    ids = tokenizer.encode(text, True)
    assert (
        encode_text(text, TextFormat(tokenizer)) == encode_text(ids, TextFormat(tokenizer)) == ids
    )
    row = encode_text(text, TextFormat(tokenizer), "assistant")
    assert row.ids.tolist() == ids
    assert tokenizer.decode(row.ids[1:][row.counted], skip_special=False) == "The sun</s>"
    assert count_targets([encode_text(text, TextFormat(tokenizer), "all")]) == len(ids) - 1
    assert encode_text("The sun", TextFormat(tokenizer), "assistant") == tokenizer.encode("The sun")


def test_a_text_begins_with_the_end_token():
    tokenizer = WordTokenizer.train(["Moles dig. </s>", "User: a Assistant: b </s>"])
    end = tokenizer.end_id
    begun = TextFormat(tokenizer, end)
    ids = tokenizer.encode("Moles dig. </s>", True)
    assert encode_text("Moles dig. </s>", begun) == [end, *ids]
    assert encode_text("Moles dig. </s>", TextFormat(tokenizer)) == ids
    for nothing in ("", "</s>"):  # is not what a model shall learn to write
        assert encode_text(nothing, begun) == tokenizer.encode(nothing, True)
    for own in ([3, 4], Row(np.array([3, 4], np.int32))):
        assert encode_text(own, begun) is own


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_a_dialogue_begins_with_the_end_token(loss_on):
    text = "User: a Assistant: b </s> User: b Assistant: a </s>"
    tokenizer = WordTokenizer.train([text])
    plain = encode_text(text, TextFormat(tokenizer), loss_on)
    row = encode_text(text, TextFormat(tokenizer, tokenizer.end_id), loss_on)
    assert row.ids.tolist() == [tokenizer.end_id, *plain.ids.tolist()]
    if loss_on == "all":
        assert row.counted is plain.counted is None
    else:  # what is predicted first, "User", does not count
        assert row.counted.tolist() == [False, *plain.counted.tolist()]


def test_of_few_large_texts_no_more_than_the_share_is_held_out():
    rows = Rows.of(texts(*[1000] * 11, 20_000))
    _, held_out = hold_out(rows, 0.02, 0)  # less than a whole text
    assert [len(row) for row in held_out] == [20] * 11 + [400]
