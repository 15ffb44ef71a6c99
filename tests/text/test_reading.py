"""How sources become texts and dialogues, and what is told of it."""

import json
from pathlib import Path

import pytest

from rustgpt.errors import ConfigError, DataError
from rustgpt.text.dataset import Dataset
from rustgpt.text.reading import FORM_NAMES


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def read(content, **more):
        (tmp_path / "a.txt").write_text(content, newline="")
        return Dataset.load("a.txt", **more)

    return read


@pytest.mark.parametrize(
    ("form", "content", "texts"),
    [
        ("text", "a\nb\nc\n", ["a\nb\nc </s>"]),
        ("lines", "Prose,\n\nand more", ["Prose, </s>", "and more </s>"]),
        ("text", '["a"]', ['["a"] </s>']),
        ("lines", '["a"]\n["b"]', ['["a"] </s>', '["b"] </s>']),
        ("json", '[\n5,\n"aa"]', ["aa </s>"]),
        ("jsonl", '"aa"\n"b"', ["aa </s>", "b </s>"]),
        ("csv", 'a,"b"\nc', ["a,b </s>", "c </s>"]),
        ("tsv", 'a\t"b"\nc', ["a\tb </s>", "c </s>"]),
        ("dialogue", "Note\n\nUser: q\nAssistant: a", ["Note </s>"]),
        ("text-key", '{"text": "tt", "question": "q", "answer": "a"}', ["tt </s>"]),
        ("auto", "aa\nb\nc\n", ["aa </s>", "b </s>", "c </s>"]),
    ],
)
def test_the_form_that_is_asked_for(load, form, content, texts):
    assert load(content, form=form).pretraining_data == texts


def test_an_unknown_form(load):
    with pytest.raises(ConfigError, match="the format must be one of auto, text, lines"):
        load("a", form="xml")
    assert len({*FORM_NAMES}) == len(FORM_NAMES)


def test_the_documentation_names_every_form():
    page = Path(__file__).parents[2] / "docs" / "your-own-data.md"
    text = page.read_text(encoding="utf-8")
    assert [name for name in FORM_NAMES[1:] if f"`{name}`" not in text] == []


def test_the_first_three_reasons(load):
    data = load(json.dumps([1, 2, "aa", None, 4, "b"]), form="json")
    (file,) = data.report.files
    assert (file.unusable, len(file.reasons), file.texts) == (4, 3, 2)
    assert [reason[:5] for reason in file.reasons] == ["row 1", "row 2", "row 4"]


def test_nothing_left_is_an_error(load):
    with pytest.raises(DataError, match=r"'a.txt' holds no text, .* \(row 1: it is a number"):
        load("[1, 2]", form="json")
    with pytest.raises(DataError, match=r"'a\.txt' holds no text"):
        load(" \n")


def test_the_kinds_together(tmp_path):
    both = tmp_path / "both.json"
    both.write_text('["Moles dig.", "User: q Assistant: a", {"prompt": "p", "completion": "c"}]')
    chats = ["User: q Assistant: a </s>", "User: p Assistant: c </s>"]
    data = Dataset.load(both)
    assert data == Dataset(["Moles dig. </s>"], chats)
    assert all(data.dialogues)
    texts = Dataset.load(pretraining=[both])
    assert texts == Dataset(["Moles dig. </s>", *chats], [])
    chat = Dataset.load(chat=both)
    assert chat == Dataset([], ["Moles dig. </s>", *chats])
    assert [dialogue is None for dialogue in chat.dialogues] == [True, False, False]
    assert chat.tuning_data == ["Moles dig. </s>", *chat.dialogues[1:]]
    assert Dataset([], chat.chat_training_data).dialogues == chat.dialogues
    with pytest.raises(DataError, match="3 texts for the chat, but 1 dialogues"):
        Dataset([], chat.chat_training_data, chat.dialogues[:1])
