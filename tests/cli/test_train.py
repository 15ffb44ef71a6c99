import json
import re
import sys

import pytest

import rustgpt
from rustgpt.cli import train
from rustgpt.text.dataset import Dataset

from .conftest import DIALOGUES, STATEMENTS, one_line, start


def test_the_whole_job(process, small, tmp_path):
    done = process(*small, stdin=b"Who are you?\n\nexit\n")
    assert done.status == 0
    titles = re.findall("=== (.*) ===", done.out)
    assert titles == ["MODEL INFORMATION", "BEFORE TRAINING", "AFTER TRAINING", "CHAT"]
    assert done.out.count("Input: How do mountains form?\nOutput: ") == 2
    assert "Texts: 3 for pre-training, 2 for instruction tuning" in done.out
    assert re.search(r"Parameters +[\d,]+\nVocabulary: \d+ tokens", done.out)
    assert re.search(r"Kernels: .+; threads: 1\n", done.out)
    assert "The model is saved in rustgpt-model." in done.out
    assert re.search(r"\nEnter prompt: Model output: .*\nEnter prompt: Enter prompt: $", done.out)
    assert "pre-training: 3 texts, 2 epochs" in done.err
    assert "instruction tuning: epoch 2/2, loss " in done.err
    assert process("chat", stdin=b"exit").status == 0
    assert process(*small).out.endswith("Enter prompt: \n")  # once more, into the same folder


def test_the_whole_job_inside(inside, small):
    done = inside(*small, "--seed", "3", "--temperature", "2", stdin=b"Who?\n")
    assert done.status == 0
    model = rustgpt.LLM.load("rustgpt-model")
    assert model.config.seed == 3
    answer = model.chat(60, 2.0, 3).send("Who?")
    assert f"Model output: {train.say.__globals__['clean'](answer)}\n" in done.out


def test_train_ends_without_a_chat(inside, small):
    done = inside("train", *small, "--out", "deep/model", stdin=b"Who are you?\n")
    assert done.status == 0
    assert "Enter prompt" not in done.out
    assert rustgpt.LLM.load("deep/model").config.embedding_dim == 16


def test_same_seed_same_model(inside, small, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert inside("train", *small, "--seed", seed, "--out", name).status == 0
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c


def test_it_learns(inside, model):
    done = inside("chat", model, stdin=b"How do mountains form?\nWho are you?\n")
    assert re.findall("output: (.*)", done.out) == ["By folding.", "A small model"]


def test_statements_alone(inside, small):
    data = (*small[:2], *small[4:])
    done = inside("train", *data)
    assert done.status == 0
    assert done.out.count("Input: The sun rises\nOutput: ") == 2
    assert "instruction tuning: left out, for there are no texts" in done.err


def test_dialogues_alone(inside, small):
    done = inside("train", *small[2:])
    assert done.status == 0
    assert "Input: How do mountains form?\n" in done.out
    assert "pre-training: left out, for there are no texts" in done.err


def test_no_epochs(inside, small):
    done = inside("train", *small, "--pretrain-epochs", "0", "--tune-epochs", "0")
    assert done.status == 0
    assert done.err.count("left out, for there are no epochs") == 2
    rustgpt.LLM.load("rustgpt-model")


def test_texts_longer_than_the_context(inside, small):
    done = inside("train", *small, "--max-seq-len", "4")
    assert done.status == 0
    assert "texts longer than the context were cut" in done.err
    assert "Output: none: the question has" in done.out


def test_the_first_question_is_shown_where_mountains_are_not_asked_for(inside, small, tmp_path):
    (tmp_path / "chat.json").write_text(json.dumps([STATEMENTS[0], DIALOGUES[1]]))
    done = inside("train", *small)
    assert "Input: Who are you?\n" in done.out
    assert "1 of 2 texts for the chat are not of the form" in done.err


def test_the_bundled_data(monkeypatch, inside, small):
    def bundled(language):
        return Dataset([f"in {language}"], DIALOGUES)

    monkeypatch.setattr(Dataset, "bundled", bundled)
    assert "Texts: 1 for" in inside("train", *small[4:]).out
    assert inside("train", *small[4:], "--language", "zh").status == 0
    assert "zh" in rustgpt.LLM.load("rustgpt-model").tokenizer.vocab
    one_line(inside("train", *small, "--language", "zh"), 2, "--language")


def test_bfloat16_where_it_cannot_be_stops_before_any_work(process, small, tmp_path):
    done = process("train", *small, "--precision", "bfloat16", env={"RUSTGPT_SIMD": "plain"})
    one_line(done, 2, "precision bfloat16 needs a processor with AVX512-BF16")
    assert not (tmp_path / "rustgpt-model").exists()


def test_the_bundled_question_is_there():
    assert train._example(Dataset.bundled("all").chat_training_data, None) == train.QUESTION
    assert train._example(Dataset.bundled("zh").chat_training_data, None)


GOOD = json.dumps(STATEMENTS).encode()
BAD = {
    "bom16": "\ufeff[]".encode("utf-16-le"),
    "empty": b"",
    "not-utf8": b'["a\xff"]',
    "cut": GOOD[:-5],
    "deep": b"[" * 100_000,
    "digits": b"[" + b"9" * 5000 + b"]",
    "nan": b"[NaN]",
    "object": b'{"a": 1}',
    "number": b'["a", 1]',
    "surrogate": rb'["\ud800"]',
    "no-texts": b"[]",
    "blank": b'[" ", "</s>"]',
    "nul": b"\0",
}


@pytest.mark.parametrize("flag", ["--pretrain", "--chat"])
@pytest.mark.parametrize("case", BAD)
def test_bad_data(inside, small, tmp_path, flag, case):
    (tmp_path / "bad.json").write_bytes(BAD[case])
    one_line(inside("train", *small, flag, "bad.json"), 1, "bad.json")
    assert not (tmp_path / "rustgpt-model").exists()


@pytest.mark.parametrize("name", ["none.json", ".", "x" * 300, "facts.json/none", "a\nb"])
def test_data_that_cannot_be_read(inside, small, name):
    one_line(inside("train", *small, "--pretrain", name), 1, "cannot read")


def test_bad_data_as_a_process(process, small, tmp_path):
    one_line(process(*small, "--chat", "none.json"), 1, "none.json")
    one_line(process(*small, "--chat", "facts.json"), 1, "'facts.json' holds no dialogue")


def test_other_forms_of_data(inside, small, tmp_path):
    (tmp_path / "facts.csv").write_text('"The sun, rises"\nWater is wet\n')
    (tmp_path / "chat.txt").write_text("\n\n".join(DIALOGUES))
    done = inside("train", *small, "--pretrain", "facts.csv", "--chat", "chat.txt")
    assert done.status == 0
    assert "Texts: 2 for pre-training, 2 for instruction tuning" in done.out


def test_a_training_that_diverges_leaves_the_last_good_model(inside, small, monkeypatch, tmp_path):
    def diverge(self, texts):
        raise rustgpt.TrainingError("training diverged at step 1")

    monkeypatch.setattr(rustgpt.Trainer, "instruction_tune", diverge)
    done = inside(*small)
    assert done.status == 1
    assert done.err.splitlines()[-1] == "rustgpt: error: training diverged at step 1"
    rustgpt.LLM.load(tmp_path / "rustgpt-model")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
def test_a_pipe_that_closes_in_the_midst_does_not_lose_the_model(tmp_path, small):
    with start(*small, "--pretrain-epochs", "200", cwd=tmp_path) as child:
        while b"BEFORE" not in child.stdout.readline():
            pass
        child.stdout.readline()
        child.stdout.readline()
        child.stdout.close()
        assert b"error" not in child.stderr.read()
    assert child.returncode == 1
    rustgpt.LLM.load(tmp_path / "rustgpt-model")


def test_a_cheap_look_at_the_reference_kernels(process, small):
    done = process("train", *small, env={"RUSTGPT_BACKEND": "reference"})
    assert done.status == 0
    assert "Kernels: reference; threads: 1" in done.out
