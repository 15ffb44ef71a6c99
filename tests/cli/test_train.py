import json
import os
import re
import signal
import sys
from collections import namedtuple

import numpy as np
import pytest

import rustgpt
import rustgpt.stepper
from rustgpt.cli import train
from rustgpt.text.dataset import Dataset

from .conftest import DIALOGUES, SMALL, STATEMENTS, one_line, replaced, start


def test_the_whole_job(process, small, tmp_path):
    done = process(*small, stdin=b"Who are you?\n\nexit\n")
    assert done.status == 0
    titles = re.findall("=== (.*) ===", done.out)
    assert titles == ["MODEL INFORMATION", "BEFORE TRAINING", "AFTER TRAINING"]
    assert done.out.count("Input: How do mountains form?\nOutput: ") == 2
    assert "Texts: 3 for pre-training, 2 for instruction tuning" in done.out
    assert re.search(r"Parameters +[\d,]+\nVocabulary: \d+ tokens", done.out)
    assert re.search(r"Kernels: .+; threads: 1\n", done.out)
    assert "The model is saved in rustgpt-model." in done.out
    shown, _, answers = done.out.rpartition("\nOutput: ")
    assert answers.count("\n") == 2  # what the question before had, and the prompt's answer
    assert "Enter prompt" not in shown
    assert "pre-training: 3 texts, 2 epochs" in done.err
    assert "instruction tuning: epoch 2/2, loss " in done.err
    assert process("chat", stdin=b"exit").status == 0


def test_the_whole_job_inside(inside, small):
    done = inside(*small, "--seed", "3", "--temperature", "2", stdin=b"Who?\n")
    assert done.status == 0
    model = rustgpt.LLM.load("rustgpt-model")
    assert model.config.seed == 3
    answer = model.chat(60, 2.0, 3).send("Who?")
    assert done.out.endswith(f"\n{train.say.__globals__['clean'](answer)}\n")


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
    assert done.out == "By folding.\nA small model\n"


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
    assert inside("train", *small[4:], "--language", "zh", "--overwrite").status == 0
    assert "zh" in rustgpt.LLM.load("rustgpt-model").tokenizer.vocab
    one_line(inside("train", *small, "--language", "zh", "--out", "new"), 2, "--language")


def test_bfloat16_where_it_cannot_be_stops_before_any_work(process, small, tmp_path):
    done = process("train", *small, "--precision", "bfloat16", env={"RUSTGPT_SIMD": "plain"})
    one_line(done, 2, "precision bfloat16 needs a processor with AVX512-BF16")
    assert not (tmp_path / "rustgpt-model").exists()


def test_the_bundled_question_is_there():
    assert train._example(Dataset.bundled("all"), None) == train.QUESTION
    assert train._example(Dataset.bundled("zh"), None)


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
    "number": b"[1, 2]",
    "surrogate": rb'["\ud800"]',
    "no-texts": b"[]",
    "blank": b'[" ", "</s>"]',
    "nul": b"\0",
}


@pytest.mark.parametrize("flag", ["--pretrain", "--chat"])
@pytest.mark.parametrize("case", BAD)
def test_bad_data(inside, small, tmp_path, flag, case):
    (tmp_path / "bad.json").write_bytes(BAD[case])
    one_line(inside("train", *replaced(small, flag, "bad.json")), 1, "bad.json")
    assert not (tmp_path / "rustgpt-model").exists()


@pytest.mark.parametrize("name", ["none.json", "x" * 300, "facts.json/none", "a\nb"])
def test_data_that_cannot_be_read(inside, small, name):
    one_line(inside("train", *replaced(small, "--pretrain", name)), 1, "cannot read")


def test_bad_data_as_a_process(process, small, tmp_path):
    one_line(process(*replaced(small, "--chat", "none.json")), 1, "none.json")
    one_line(process(*replaced(small, "--chat", "facts.json")), 1, "'facts.json' holds no dialogue")


def test_other_forms_of_data(inside, small, tmp_path):
    (tmp_path / "facts.csv").write_text('"The sun, rises"\nWater is wet\n')
    (tmp_path / "chat.txt").write_text("\n\n".join(DIALOGUES))
    flags = replaced(replaced(small, "--pretrain", "facts.csv"), "--chat", "chat.txt")
    done = inside("train", *flags)
    assert done.status == 0
    assert "Texts: 2 for pre-training, 2 for instruction tuning" in done.out


def test_a_training_that_diverges_leaves_the_last_good_model(inside, small, monkeypatch, tmp_path):
    def diverge(self, *_):
        raise rustgpt.TrainingError("training diverged at step 1")

    monkeypatch.setattr(rustgpt.Trainer, "instruction_tune", diverge)
    done = inside(*small)
    assert done.status == 1
    assert done.err.splitlines()[-1] == (
        "rustgpt: error: training diverged at step 1; rustgpt-model holds a good model, saved "
        "after the pre-training"
    )
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


# A model that is there


def digest(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train"], []])
def test_a_model_is_replaced_only_when_asked_for(process, small, tmp_path, command):
    assert process(*command, *small).status == 0
    before = digest(tmp_path / "rustgpt-model")
    for flags in (small, (*small, "--seed", "5")):
        done = process(*command, *flags)
        one_line(done, 2, "'rustgpt-model' holds a model already", "--out", "--overwrite")
        assert digest(tmp_path / "rustgpt-model") == before
    assert process(*command, *small, "--seed", "5", "--overwrite").status == 0
    assert digest(tmp_path / "rustgpt-model") != before
    assert process(*command, *small, "--out", "another").status == 0
    assert rustgpt.LLM.load(tmp_path / "another").config.seed == 0


@pytest.mark.parametrize("command", [["train"], []])
def test_ctrl_c_before_the_first_step_saves_nothing(inside, monkeypatch, small, tmp_path, command):
    assert inside("train", *small).status == 0
    before = digest(tmp_path / "rustgpt-model")
    rows = rustgpt.Trainer._rows

    def rows_and_a_signal(self, *given):
        os.kill(os.getpid(), signal.SIGINT)
        return rows(self, *given)

    monkeypatch.setattr(rustgpt.Trainer, "_rows", rows_and_a_signal)
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = inside(*command, *small, "--overwrite")
        assert done.status == 130
        assert "stopped before the first step; rustgpt-model still holds the model" in done.err
        assert digest(tmp_path / "rustgpt-model") == before
        done = inside(*command, *small, "--out", "new")
        assert done.status == 130
        assert "stopped before the first step; no model was saved" in done.err
        assert not (tmp_path / "new").exists()
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.slow
def test_without_a_training_option_a_model_is_talked_to(process, model, tmp_path):
    done = process("--out", model, stdin=b"Who are you?\n")
    assert (done.status, done.out) == (0, "A small model\n")
    assert "holds a model, and this is its chat" in done.err
    assert "--overwrite" in done.err
    assert "--out" in done.err
    hot = process("--out", model, "--temperature", "9", "--max-new-tokens", "3", stdin=b"Who?\n")
    assert hot.status == 0
    assert "holds a model" in hot.err
    for flag in (["--language", "en"], ["--n-layers", "2"], ["--overwrite", "--language", "xx"]):
        assert process("--out", model, *flag).status == 2
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    one_line(process("--out", "broken"), 1, "config.json")


# Saving while it trains


def test_the_model_is_saved_within_a_phase(inside, small, monkeypatch):
    saved = []

    original = rustgpt.LLM.save

    def save(self, folder, more):
        saved.append(float(self.parameters.sum()))
        original(self, folder, more)

    monkeypatch.setattr(rustgpt.LLM, "save", save)
    flags = (*small, "--batch-size", "1")
    assert inside("train", *flags, "--save-every", "0").status == 0
    assert len(saved) == 2  # after each phase
    saved.clear()
    clock = iter(range(0, 10**6, 40))
    monkeypatch.setattr("rustgpt.parallel.exchange.time.perf_counter", lambda: next(clock))
    assert inside("train", *flags, "--save-every", "1m", "--out", "often").status == 0
    assert len(saved) > 4
    assert len(set(saved)) == len(saved)
    assert rustgpt.LLM.load("often").parameters.sum() == saved[-1]


@pytest.mark.parametrize("value", ["-1", "x", "", "5d", "nan", "1e9h"])
def test_a_wrong_time_is_refused(inside, small, value):
    one_line(inside("train", *small, f"--save-every={value}"), 2, "--save-every")


def test_a_save_that_fails_does_not_end_the_training(inside, small, monkeypatch, tmp_path):
    original, tries = rustgpt.LLM.save, []

    def full(self, folder, more):
        tries.append(folder)
        if len(tries) == 1:
            raise rustgpt.CheckpointError("no space left")
        original(self, folder, more)

    monkeypatch.setattr(rustgpt.LLM, "save", full)
    done = inside("train", *small)
    assert done.status == 0
    assert "rustgpt: no space left; the training goes on" in done.err
    assert len(tries) == 2
    rustgpt.LLM.load(tmp_path / "rustgpt-model")


def test_a_model_that_cannot_be_saved_at_the_end_goes_elsewhere(inside, small, monkeypatch):
    original = rustgpt.LLM.save

    def full(self, folder, more):
        if not isinstance(folder, str):  # the training's own folder
            raise rustgpt.CheckpointError("no space left")
        original(self, folder, more)

    monkeypatch.setattr(rustgpt.LLM, "save", full)
    done = inside("train", *small)
    assert done.status == 1
    found = re.search(r"no space left; the trained model is in (\S+): move it", done.err)
    assert rustgpt.LLM.load(found[1]).config.embedding_dim == 16
    monkeypatch.setattr(rustgpt.LLM, "save", lambda self, _, more: full(self, None, more))
    done = inside("train", *small, "--out", "other")
    assert done.status == 1
    assert done.err.splitlines()[-1] == "rustgpt: error: no space left; no model was saved"


def test_what_was_learned_is_not_lost_with_the_memory(inside, small, monkeypatch, tmp_path):
    original, calls = rustgpt.stepper.Stepper.step, []

    def step(self, *given):
        calls.append(given)
        if len(calls) == 4:
            raise MemoryError
        return original(self, *given)

    monkeypatch.setattr("rustgpt.stepper.Stepper.step", step)
    done = inside("train", *small, "--batch-size", "1")
    assert done.status == 1
    assert "rustgpt-model holds a good model, saved at the end" in done.err
    assert "there is not enough memory" in done.err.splitlines()[-1]
    rustgpt.LLM.load(tmp_path / "rustgpt-model")


def test_where_there_is_no_refuge_the_reason_is_told(inside, small, monkeypatch):
    def full(*_, **__):
        raise rustgpt.CheckpointError("no space left")

    def nowhere(**_):
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(rustgpt.LLM, "save", full)
    monkeypatch.setattr("rustgpt.cli.keeper.tempfile.mkdtemp", nowhere)
    done = inside("train", *small)
    assert done.status == 1
    assert done.err.splitlines()[-1] == "rustgpt: error: no space left; no model was saved"


@pytest.mark.slow
def test_a_training_has_its_folder_for_itself(process, small, tmp_path):
    with start("train", *small, "--pretrain-epochs", "1000000", cwd=tmp_path) as child:
        while b"pre-training:" not in child.stderr.readline():
            pass
        done = process("train", *small)
        one_line(done, 1, "rustgpt-model is in use by process", str(child.pid), "choose another")
        child.kill()  # which releases the folder
    assert process("train", *small).status == 0
    assert not (tmp_path / "rustgpt-model" / ".lock").exists()


def test_a_full_disk_is_noticed_before_the_training(inside, small, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**9, 10**9, 1000))
    one_line_after(inside("train", *small), 2, "MiB are free", "--out")
    assert not (tmp_path / "rustgpt-model").exists()


def one_line_after(done, status, *words):
    assert (done.status, done.err.count("\n")) == (status, 1), done
    for word in words:
        assert word in done.err


def test_a_diverging_training_says_which_model_is_good(inside, small):
    rates = ("--tune-rate", "1000", "--weight-decay", "1000", "--tune-epochs", "200")
    done = inside("train", *small, "--pretrain-rate", "0", *rates)
    assert done.status == 1, done
    last = done.err.splitlines()[-1]
    assert "diverged at instruction tuning, step" in last
    assert "those before it have led here" in last
    assert last.endswith("rustgpt-model holds a good model, saved after the pre-training")
    assert np.isfinite(rustgpt.LLM.load("rustgpt-model").parameters).all()


def test_a_first_text_of_one_word_is_shown_as_it_is(inside, tmp_path):
    (tmp_path / "names.txt").write_text("emma\nolivia\nava\n")
    done = inside("train", "--pretrain", "names.txt", "--pretrain-epochs", "1", "--n-layers", "1")
    assert done.status == 0
    assert done.out.count("Input: emma\nOutput: ") == 2


@pytest.mark.parametrize("flag", ["--out", "--config"])
def test_a_file_given_twice_is_refused(inside, small, flag):
    one_line(inside("train", flag, "a", flag, "b"), 2, f"{flag}: may be given once only")


# Data of one's own


def test_paths_of_every_kind(process, tmp_path):
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "tar.md").write_text("# Tar\n\nTar is sticky,\nas all know.\n")
    (tmp_path / "notes" / "deep" / "bees.jsonl").write_text(
        '{"question": "Is tar sticky?", "answer": "Yes.", "source": null}\n'
        '{"question": "Is glass soft?", "answer": null}\n'
    )
    (tmp_path / "more.csv").write_text("question,answer\nWho are you?,A model.\n")
    settings = (*SMALL, "--pretrain-epochs", "1", "--tune-epochs", "1")
    done = process("train", "notes", "--out", "a", *settings, "mo*.csv", "-", stdin=b"From a pipe.")
    assert done.status == 0
    assert "Texts: 2 for pre-training, 2 for instruction tuning" in done.out
    lines = done.err.splitlines()
    assert lines[0].startswith("rustgpt: 4 files, 2 texts, 2 dialogues; 47 tokens, ")
    assert lines[1:5] == [
        "rustgpt: 'notes/deep/bees.jsonl': JSON lines, 1 dialogue",
        "rustgpt:   cannot be used: 1 row",
        "rustgpt:     row 2: 'answer' is null, not text",
        "rustgpt:   ignored keys: 'source' (1)",
    ]
    assert lines[5].startswith("rustgpt: warning: the data are 47 tokens, too few")
    assert rustgpt.LLM.load(tmp_path / "a").config.embedding_dim == 16


def test_names_are_lines_and_warned_of(inside, tmp_path):
    (tmp_path / "names.txt").write_text("emma\nolivia\nava\n")
    settings = (*SMALL, "--pretrain-epochs", "1")
    done = inside("train", "names.txt", *settings)
    assert done.status == 0
    assert "warning: each text is a single token" in done.err
    whole = inside("train", "names.txt", "--format", "text", "--overwrite", *settings)
    assert "1 file, 1 text, 0 dialogues" in whole.err
    assert "single token" not in whole.err


def test_several_files_to_a_flag(inside, small):
    flags = (*small[4:], "--pretrain", "facts.json", "chat.json", "--chat", "chat.json")
    done = inside("train", *flags)
    assert "Texts: 5 for pre-training, 2 for instruction tuning" in done.out


def test_wrong_data_flags(inside, small):
    one_line(inside("train", "--format", "xml", "facts.json"), 2, "--format", "jsonl")
    one_line(inside("train", "--format", "csv"), 2, "--format is for data of your own")
    one_line(inside("train", "facts.json", "--language", "en"), 2, "--language")
    one_line(inside("facts.json"), 2, "there is no command 'facts.json'")
    one_line(inside("train", "facts.json", "--wrong", "x"), 2, "--wrong")


def test_chat_data_that_begin_without_a_dialogue(inside, tmp_path):
    rows = ['{"text": "Moles dig tunnels. %s"}' % ("so " * 4000)] * 100
    rows.append('{"question": "Is tar sticky?", "answer": "Yes."}')
    (tmp_path / "chat.jsonl").write_text("\n".join(rows))
    flags = (*SMALL, "--max-steps", "1", "--max-seq-len", "16", "--batch-size", "1")
    done = inside("train", "--chat", "chat.jsonl", *flags)
    assert (done.status, "mistake" in done.err) == (0, False)
