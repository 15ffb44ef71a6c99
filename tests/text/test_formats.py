"""The forms of files: the same content read from each, and what is broken."""

import random

import pytest

from rustgpt.errors import DataError
from rustgpt.text.dataset import Dataset

from .generated import FORMS, expected, mutants

FILES = 200
MUTANTS = 500


@pytest.fixture
def load(tmp_path):
    def read(name, content, **more):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return Dataset.load(path, **more)

    return read


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_the_same_content_whatever_differs(load, form):
    rng = random.Random(form)
    for number in range(FILES):
        name, data, content = FORMS[form](rng)
        read = load(name, data)
        found = read.pretraining_data + read.chat_training_data
        assert found == expected(content), (number, name, data)
        assert all(isinstance(item, str) for item in content) == (not read.chat_training_data)
        assert read.report.total("unusable") == 0
        if read.chat_training_data:
            said = [[(one.role, one.content) for one in chat.messages] for chat in read.dialogues]
            assert said == content


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_damaged_files(load, form):
    messages = []
    for name, data in mutants(form, MUTANTS):
        try:
            read = load(name, data)
        except DataError as error:
            messages.append(str(error))
        else:
            found = read.pretraining_data + read.chat_training_data
            assert found
            assert all(text.endswith("</s>") and text.encode() for text in found), data
    assert 0 < len(messages) < MUTANTS
    assert [message for message in messages if not message.isprintable()] == []
