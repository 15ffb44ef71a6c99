"""Tests of the chat: what the model reads for each question, and what is remembered."""

import copy

import numpy as np
import pytest

from rustgpt import LLM, TrainConfig, Trainer, WordTokenizer
from rustgpt.errors import DataError, TokenizerError
from rustgpt.text.dialogue import Dialogue, Message

DIALOGUES = [
    "User: What is red? Assistant: The sun </s> User: And green? Assistant: Grass </s>",
    "User: Who are you? Assistant: A small model </s> User: And green? Assistant: Me </s>",
]


@pytest.fixture(scope="module")
def learned(small):
    """A model that knows two dialogues of two turns by heart."""
    config = small(max_seq_len=56, embedding_dim=32, hidden_dim=64, n_heads=2)
    model = LLM(config, WordTokenizer.train([*DIALOGUES, "System: Be brief 雨 🙂"]))
    config = TrainConfig(tune_epochs=200, tune_rate=3e-3, threads=1)
    Trainer(model, config).instruction_tune(DIALOGUES)
    return model


class Reads:
    """Keeps what a model is given to decode."""

    def __init__(self, model, monkeypatch):
        self.rows = []
        original = type(model)._decode

        def spy(model, rows, cache, slots):
            self.rows.append((int(cache.lengths[slots[0]]), rows[0].tolist()))
            return original(model, rows, cache, slots)

        monkeypatch.setattr(type(model), "_decode", spy)

    def texts(self, model):
        """Return each prompt as far as it was read anew, with the number of tokens before it."""
        read = [(n, ids) for n, ids in self.rows if len(ids) > 1 or n == 0]
        self.rows.clear()
        return [(n, model.tokenizer.decode(ids, skip_special=False)) for n, ids in read]


def test_a_question_is_understood_by_what_was_said_before(learned):
    chat = learned.chat()
    assert chat.send("What is red?") == "The sun"
    assert chat.send(" And green? ") == "Grass"
    other = learned.chat()
    assert [other.send(q) for q in ("Who are you?", "And green?")] == ["A small model", "Me"]
    assert chat.history == [
        Message("user", "What is red?"), Message("assistant", "The sun"),
        Message("user", "And green?"), Message("assistant", "Grass"),
    ]  # fmt: skip
    chat.reset()
    assert chat.history == []
    assert chat.send("What is red?") == "The sun"


def test_the_model_reads_the_form_that_it_has_learned(learned, monkeypatch):
    seen = []
    original = type(learned)._decode

    def spy(model, rows, cache, slots):
        seen.append((cache.lengths[0], rows[0].copy()))
        return original(model, rows, cache, slots)

    monkeypatch.setattr(type(learned), "_decode", spy)
    chat = learned.chat()
    for question in ("What is red?", "And green?"):
        chat.send(question)
    read = np.zeros(0, np.int32)
    for length, row in seen:
        read = np.concatenate([read[:length], row])
    row = learned.text_format.dialogue(Dialogue.parse(DIALOGUES[0]))
    np.testing.assert_array_equal(read, row.ids[:-1])  # the last is what ended the answer


def test_what_was_read_is_not_read_again(learned, monkeypatch):
    reads, chat = Reads(learned, monkeypatch), learned.chat()
    chat.send("What is red?")
    ((before, _),) = reads.texts(learned)
    assert before == 0
    chat.send("And green?")
    ((before, text),) = reads.texts(learned)
    assert before > 8
    assert "red" not in text
    learned.parameters = learned.parameters.copy()  # others may have been trained
    chat.send("And green?")
    assert reads.texts(learned)[0][0] == 0


def test_without_a_memory_each_question_stands_by_itself(learned):
    chat = learned.chat(remembers=False)
    for _ in range(2):
        assert chat.send("What is red?") == "The sun"
        assert chat.send("Who are you?") == "A small model"
    assert len(chat.history) == 2


def test_the_oldest_turns_leave_first(learned, monkeypatch):
    reads, chat = Reads(learned, monkeypatch), learned.chat(max_new_tokens=9, system="Be brief")
    forgotten = []
    for i in range(12):
        chat.send(f"And {'🙂' * (i % 3)} green?")
        forgotten.append(chat.forgotten)
        for before, ids in reads.rows:
            assert before + len(ids) <= learned.max_seq_len
        reads.rows.clear()
    assert forgotten[:2] == [0, 0]
    assert sum(forgotten) >= 8
    assert len(chat.history) // 2 == 12 - sum(forgotten)
    assert chat.history[-2].content == "And 🙂🙂 green?"


def test_a_system_message_comes_first_and_stays(learned, monkeypatch):
    reads, chat = Reads(learned, monkeypatch), learned.chat(3, system="Be brief")
    forgotten = 0
    for _ in range(8):
        chat.send("Who are you?")
        forgotten += chat.forgotten
        read = learned.tokenizer.decode(reads.rows[0][1])
        assert reads.rows[0][0] or read.startswith("System: Be brief User:")
        reads.rows.clear()
    assert forgotten > 2
    chat.system = ""
    chat.send("Who are you?")
    assert learned.tokenizer.decode(reads.rows[0][1]).startswith("User:")


def test_a_stream_gives_the_answer_alone_and_is_remembered(learned):
    chat = learned.chat()
    pieces = list(chat.stream("What is red?"))
    assert pieces == ["The", " sun"]
    assert chat.history[-1] == Message("assistant", "The sun")
    assert chat.undo() == "What is red?"
    assert chat.undo() is None


def test_what_was_made_of_a_stopped_answer_is_remembered(learned):
    chat = learned.chat()
    answer = chat.stream("Who are you?")
    assert next(answer) == "A"
    answer.stop()
    assert [message.content for message in chat.history] == ["Who are you?", "A"]
    answer = chat.stream("Who are you?")
    assert next(answer)
    chat.send("What is red?")  # which ends the answer before
    assert list(answer) == []
    assert len(chat.history) == 6
    unread = chat.stream("Who are you?")
    unread.stop()
    assert len(chat.history) == 6


def test_the_same_seed_gives_the_same_chat(learned):
    def said(seed):
        chat = learned.chat(temperature=3.0, seed=seed, max_new_tokens=8)
        return [chat.send("Who?") for _ in range(3)]

    assert said(1) == said(1)
    assert said(1) != said(2)
    assert len(set(said(1))) == 3


def test_a_question_that_just_fills_the_context(learned):
    words = "green " * 60
    chat = learned.chat()
    chat.send("Who are you?")
    with pytest.raises(DataError, match=r"the question has .* but the model sees 56 at once"):
        chat.send(words)
    assert len(chat.history) == 2  # nothing is forgotten for what is refused
    length = len(learned.prompt_ids("User: x Assistant:")) - 1
    roomy = ("green " * (learned.max_seq_len - length - 1)).strip()
    assert isinstance(chat.send(roomy), str)
    with pytest.raises(DataError, match=f"has {learned.max_seq_len} tokens"):
        chat.send(f"{roomy} green")


@pytest.mark.parametrize("wrong", [None, 5, b"bytes", ["a"]])
def test_what_is_no_text_is_an_error(learned, wrong):
    with pytest.raises(TokenizerError, match="a question must be text"):
        learned.chat().send(wrong)
    with pytest.raises(TokenizerError, match="a system message must be text"):
        learned.chat(system=wrong)


def test_a_question_without_an_answer_is_asked_again_and_not_remembered(learned):
    chat = learned.chat()
    chat.send("What is red?")
    chat.stream("And green?").stop()  # before a word was said
    assert [message.content for message in chat.history] == ["What is red?", "The sun"]
    assert chat.undo() == "And green?"
    assert chat.undo() == "What is red?"
    chat.stream("And green?").stop()
    chat.reset()
    assert chat.undo() is None


def test_an_answer_goes_on_by_single_tokens(learned):
    """Whoever shows it can look up between them, also while nothing is certain of the text."""
    chat = learned.chat(stop=["sun is"])  # "sun" is held back
    pieces, steps = chat.stream("What is red?"), []
    while (piece := pieces.step()) is not None:
        steps.append(piece)
    assert "" in steps
    assert "".join(steps) == pieces.text == "The sun"
    beams = learned.chat(num_beams=2).stream("What is red?")
    assert beams.step() == ""
    beams.stop()
    assert beams.step() is None


@pytest.mark.parametrize("change", ["none", "parameters", "named", "set", "within"])
def test_after_a_change_of_the_weights_all_is_read_anew(learned, monkeypatch, change):
    model = copy.deepcopy(learned)
    reads, chat, weights = Reads(model, monkeypatch), model.chat(), model.parameters
    chat.send("What is red?")
    reads.rows.clear()
    if change == "parameters":
        model.parameters[:] *= 0.5
    elif change == "named":
        model.named_parameters()["layers.0.tokens"][:] *= 0.5
    elif change == "set":
        model.parameters = model.parameters * 0.5
    elif change == "within":  # through an array that was kept
        with model.weights_lock.writing():
            weights *= 0.5
    chat.stream("What is red?").step()
    ((begins_at, _),) = reads.texts(model)
    assert (begins_at == 0) == (change != "none")


def test_a_question_that_is_interrupted_as_it_begins_leaves_nothing(learned, monkeypatch):
    chat = learned.chat()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rustgpt.generation.chat.Continuation", interrupted)
        with pytest.raises(KeyboardInterrupt):
            chat.stream("And green?")
    assert chat.send("What is red?") == "The sun"
    assert len(chat.history) == 2
