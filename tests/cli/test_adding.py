"""A finished model is trained on with new data: what it keeps, and which flags belong together."""

import json

import pytest

import rustgpt
from rustgpt.training_record import TrainingRecord

from .conftest import DIALOGUES, STATEMENTS, one_line

NEW = ["User: Who is Pippin? Assistant: Pippin is my cat </s>"]
FAST = ("--threads", "1", "--tune-epochs", "40", "--tune-rate", "0.01", "--out", "new")


@pytest.fixture
def new(tmp_path):
    """The flags of an addition."""
    (tmp_path / "new.json").write_text(json.dumps(NEW))
    return ("--chat", str(tmp_path / "new.json"), *FAST)


def notes(folder):
    with rustgpt.checkpoint.load(folder) as saved:
        return TrainingRecord.read(saved).notes


def test_new_answers_come_and_old_ones_stay(inside, model, new):
    done = inside("train", "--init", model, *new, "--replay", "0.8")
    assert done.status == 0, done
    added = rustgpt.LLM.load("new")
    assert added.tokenizer.vocab == rustgpt.LLM.load(model).tokenizer.vocab
    assert added.chat().send("Who is Pippin?") == "Pippin is my cat"
    assert added.chat().send("How do mountains form?") == "By folding."
    assert added.chat().send("Who are you?") == "A small model"


def test_new_words_get_tokens(inside, model, new):
    flags = ("--replay", "0.5", "--extend-vocab", "--tune-epochs", "120")
    done = inside("train", "--init", model, *new, *flags)
    assert "new words in the vocabulary" in done.err
    before, after = rustgpt.LLM.load(model).tokenizer, rustgpt.LLM.load("new").tokenizer
    assert after.vocab.tokens[: before.vocab_size] == before.vocab.tokens
    assert set(after.vocab.tokens[before.vocab_size :]) == {"Pippin", "cat", "my"}  # "is" is known
    assert rustgpt.LLM.load("new").chat().send("Who is Pippin?") == "Pippin is my cat"


def test_it_says_how_not_to_forget(inside, model, new):
    assert "with --replay 0.8" in inside("train", "--init", model, *new).err
    done = inside("train", "--init", model, *new, "--replay", "0.8", "--overwrite")
    assert "may forget" not in done.err


def test_the_data_of_a_chain_are_all_old(inside, model, new, tmp_path):
    assert inside("train", "--init", model, *new, "--replay", "0.5").status == 0
    (tmp_path / "more.json").write_text(json.dumps(["User: Why? Assistant: So </s>"]))
    done = inside("train", "--init", "new", "--chat", "more.json", *FAST[:-1], "third",
                  "--replay", "0.5")  # fmt: skip
    assert done.status == 0
    before = notes("third")["before"]
    assert [source["chat"] for source in before] == [notes(model)["data"]["chat"], [new[1]]]


def test_old_data_of_ones_own(inside, model, new, tmp_path):
    rustgpt.LLM.load(model).save("bare")
    one_line(inside("train", "--init", "bare", *new, "--replay", "0.5"), 2, "--replay 0.5 PATH")
    (tmp_path / "old.json").write_text(json.dumps(DIALOGUES))
    assert inside("train", "--init", "bare", *new, "--replay", "0.8", "old.json").status == 0
    assert notes("new")["before"] == [{"path": str(tmp_path / "old.json")}]
    assert rustgpt.LLM.load("new").chat().send("Who are you?") == "A small model"
    assert inside("train", "--init", "bare", *new).status == 2  # it is there already


def test_an_addition_is_resumed_with_its_old_data(inside, model, new, tmp_path, monkeypatch):
    flags = ("--init", model, *new, "--replay", "0.7", "--batch-size", "2")
    assert inside("train", *flags).status == 0
    original, folder = rustgpt.Trainer._step, tmp_path / "new"
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(self, *given):
        if self.steps == 31:
            raise MemoryError
        original(self, *given)

    monkeypatch.setattr(rustgpt.Trainer, "_step", fail)
    assert inside("train", *flags, "--overwrite").status == 1
    monkeypatch.setattr(rustgpt.Trainer, "_step", original)
    one_line(inside("train", "--resume", "new", "--replay", "0.6"), 2, "--replay 0.6", "has 0.7")
    assert inside("train", "--resume", "new").status == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_statements_alone_are_learned_beside_old_dialogues(inside, model, tmp_path):
    (tmp_path / "new.json").write_text(json.dumps([STATEMENTS[0]]))
    flags = ("--pretrain", "new.json", *FAST[:2], "--out", "new", "--pretrain-epochs", "30")
    assert inside("train", "--init", model, *flags, "--replay", "0.8").status == 0
    assert rustgpt.LLM.load("new").chat().send("Who are you?") == "A small model"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--replay", "0.5"], "--replay belongs to --init"),
        (["--extend-vocab"], "--extend-vocab belongs to --init"),
        (["--init", "MODEL"], "--init trains on new data"),
        (["--init", "MODEL", "--replay", "0.5", "new.json"], "before --replay"),
        (["--init", "MODEL", "--chat", "new.json", "--tokenizer", "char"], "leave out --tokenizer"),
        (["--init", "MODEL", "--chat", "new.json", "--vocab-size", "9"], "leave out --vocab-size"),
        (["--init", "MODEL", "--chat", "new.json", "--replay", "1"], "from 0 to below 1"),
        (["--init", "MODEL", "--chat", "new.json", "--replay", "x"], "from 0 to below 1"),
        (["--init", "MODEL", "--chat", "new.json", "--replay", "nan"], "from 0 to below 1"),
        (["--init", "MODEL", "--chat", "new.json", "--replay", ".5", "a", "b"], "one path"),
        (["--init", "MODEL", "--chat", "new.json", "--n-layers", "5"], "--n-layers 5 contradicts"),
    ],
)
def test_flags_that_do_not_belong_together(inside, model, new, tmp_path, flags, named):
    given = [model if flag == "MODEL" else flag for flag in flags]
    one_line(inside("train", *given, "--out", "new"), 2, named)
    assert not (tmp_path / "new").exists()


def test_a_model_that_is_not_there(inside, new):
    one_line(inside("train", "--init", "none", *new), 1, "no model in none")
