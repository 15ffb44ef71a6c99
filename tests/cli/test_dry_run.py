"""Tests of `--dry-run`: what it says beside what then happens."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

import rustgpt
from rustgpt.cli.dry_run import guessing_loss
from rustgpt.text.rows import Row

from .conftest import SMALL, one_line, start

WORDS = [f"word{i}" for i in range(300)]
FLAGS = ("--embedding-dim", "256", "--hidden-dim", "512", "--max-seq-len", "64", "--threads", "1")


@pytest.fixture
def own(tmp_path):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(5, 100))) for _ in range(60)]
    (tmp_path / "own.json").write_text(json.dumps(texts), encoding="utf-8")
    chat = [f"User: {text[:20]}? Assistant: {text[20:60]} </s>" for text in texts[:20]]
    (tmp_path / "chat.json").write_text(json.dumps(chat), encoding="utf-8")
    return ("train", "--pretrain", "own.json", "--chat", "chat.json", *FLAGS)


def peak_of(*args, cwd):
    """Run a process; return its standard output, and the most memory in MB that it had."""
    with start(*args, cwd=cwd, stderr=subprocess.DEVNULL) as child:
        out = child.stdout.read().decode()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    return out, usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
def test_it_says_what_then_happens(own, tmp_path):
    flags = (*own, "--pretrain-epochs", "2", "--tune-epochs", "3")
    said, _ = peak_of(*flags, "--dry-run", cwd=tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["chat.json", "own.json"]
    out, peak = peak_of(*flags, cwd=tmp_path)
    memory = float(re.search(r"Peak memory: ([\d,]+) MB", said)[1].replace(",", ""))
    assert peak <= memory <= 1.15 * peak
    parameters = re.search(r"Parameters:? +([\d,]+)", said)[1]
    assert re.search(rf"Parameters +{parameters}\n", out)
    steps = re.findall(r"(pre-training|instruction tuning): (\d+) steps in (\d) epochs", said)
    model = rustgpt.LLM.load(tmp_path / "rustgpt-model")
    assert model.n_parameters == int(parameters.replace(",", ""))
    assert [(name, int(epochs)) for name, _, epochs in steps] == [
        ("pre-training", 2), ("instruction tuning", 3),
    ]  # fmt: skip
    assert len(re.findall(r"[\d,]+ tokens/s, ", said)) == 2
    assert re.search(r"\nTime: \d+ s\n", said)


def test_the_model_and_the_settings_are_those_of_the_training(inside, small, monkeypatch):
    rates = []
    step = rustgpt.stepper.Stepper.step

    def spy(self, batch, rate, *more):
        rates.append(rate)
        return step(self, batch, rate, *more)

    monkeypatch.setattr("rustgpt.stepper.Stepper.step", spy)
    done = inside("train", *small, "--dry-run")
    assert done.status == 0
    assert set(rates) == {0.0}
    assert done.out.count("steps in 2 epochs") == 2
    assert inside(*small, "--dry-run").out.count("steps in 2 epochs") == 2
    only = inside("train", *small[:2], *SMALL, "--dry-run", "--max-steps", "7")
    assert "pre-training: 7 steps in 7 epochs" in only.out
    assert "instruction tuning" not in only.out


def test_a_long_training_is_stopped_soon(inside, own, monkeypatch):
    monkeypatch.setattr("rustgpt.cli.dry_run.SECONDS", 0.0)
    monkeypatch.setattr("rustgpt.validation.TEXTS_AT_ONCE", 2)
    evaluated, steps = [], []
    evaluate, step = rustgpt.stepper.Stepper.evaluate, rustgpt.stepper.Stepper.step
    monkeypatch.setattr(
        "rustgpt.stepper.Stepper.evaluate",
        lambda self, rows: evaluated.append(len(rows)) or evaluate(self, rows),
    )
    monkeypatch.setattr(
        "rustgpt.stepper.Stepper.step",
        lambda self, *given: steps.append(given) or step(self, *given),
    )
    done = inside(*own, "--dry-run", "--pretrain-epochs", "40", "--tune-epochs", "40")
    assert done.status == 0
    assert re.search(r"pre-training: \d+ steps in 40 epochs", done.out)
    assert evaluated == [2]  # of own texts, the first two of those that are held out
    assert len(steps) == 12  # of each phase its largest, and five


@pytest.mark.parametrize("size", [("--batch-size", "5"), ("--batch-tokens", "150")])
def test_it_begins_with_the_largest_step_of_all(size, inside, own, monkeypatch):
    step, sizes = rustgpt.stepper.Stepper.step, []

    def spy(self, batch, *more):
        sizes.append(sum(len(row) - 1 for row in batch))
        return step(self, batch, *more)

    monkeypatch.setattr("rustgpt.stepper.Stepper.step", spy)
    few = (*own, "--embedding-dim", "8", "--hidden-dim", "8", "--tune-epochs", "0", *size)
    assert inside(*few, "--pretrain-epochs", "3", "--dry-run").status == 0
    first = sizes[0]
    sizes.clear()
    assert inside(*few, "--pretrain-epochs", "3").status == 0
    assert first == max(sizes)


def test_guessing_by_frequency(letters):
    model = rustgpt.LLM(rustgpt.ModelConfig(embedding_dim=8, n_layers=1), letters)
    ids = model.tokenizer.encode("abab", True)
    assert len(set(ids)) == 2
    row = np.array([ids[0], *ids, *ids], np.int32)  # a, then four times each
    assert guessing_loss([row], model) == pytest.approx(np.log(2))
    counted = np.zeros(8, bool)
    counted[[0, 2, 4, 1]] = True  # three of one, one of the other
    expected = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert guessing_loss([Row(row, counted)], model) == pytest.approx(expected)
    assert guessing_loss(["aaaa"], model) == 0.0


@pytest.mark.parametrize("flag", ["--dry-run", "--print-config"])
def test_what_is_wrong_is_an_error(inside, small, flag):
    one_line(inside("train", *small, flag, "--n-heads", "7"), 2, "n_heads")


def test_bad_data_is_an_error(inside):
    one_line(inside("train", "--pretrain", "none.json", "--dry-run"), 1, "none.json")
