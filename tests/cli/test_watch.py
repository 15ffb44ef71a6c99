"""Tests of what is told of a training while it runs, and of the best model that it had."""

import json
import re

import pytest

import rustgpt
from rustgpt.cli import watch
from rustgpt.stepper import Stepper

from .conftest import SMALL, one_line, start

WORDS = ["sun", "rain", "wind", "snow", "hail"]
TEXTS = [f"{a} and {b} and {c}" for a in WORDS for b in WORDS for c in WORDS[:2]]
LINE = re.compile(
    r"pre-training, step (\d+): validation loss ([\d.]+), perplexity ([\d.]+), ([\d.]+) bits per "
    r"byte; training loss ([\d.]+), perplexity [\d.]+(; the best so far)?"
)


@pytest.fixture
def own(tmp_path):
    """The flags of a training on 50 texts."""
    (tmp_path / "own.json").write_text(json.dumps(TEXTS), encoding="utf-8")
    return ("train", "--pretrain", str(tmp_path / "own.json"), *SMALL, "--pretrain-epochs", "3")


def test_of_own_texts_a_tenth_is_evaluated(process, own, tmp_path):
    done = process(*own)
    assert done.status == 0
    assert "validation: 5 texts (or their ends) are not learned" in done.err
    found = [match.groups() for match in LINE.finditer(done.err)]
    assert [int(step) for step, *_ in found] == [3, 6, 9]  # 45 texts, 16 in a step
    losses = [float(loss) for _, loss, *_ in found]
    best = losses.index(min(losses))
    assert found[best][-1]
    folder = tmp_path / "rustgpt-model"
    assert f"lowest validation loss, {losses[best]:.4f} after step {3 * (best + 1)}" in done.out
    assert "is in rustgpt-model/best." in done.out
    held_out = rustgpt.LLM.load(folder / "best")
    assert held_out.n_parameters == rustgpt.LLM.load(folder).n_parameters
    assert process("chat", "rustgpt-model/best", stdin=b"exit").status == 0


def test_the_best_model_is_not_the_last_one(inside, own, monkeypatch, tmp_path):
    losses, models = iter([2.0, 1.0, 3.0]), []

    def loss(self, stepper, stopped):
        models.append(stepper.model.parameters.copy())
        return next(losses)

    monkeypatch.setattr("rustgpt.validation.Validation.loss", loss)
    done = inside(*own)
    assert "lowest validation loss, 1.0000 after step 6 of the pre-training" in done.out
    best, last = rustgpt.LLM.load("rustgpt-model/best"), rustgpt.LLM.load("rustgpt-model")
    assert best.parameters.tobytes() == models[1].tobytes() != last.parameters.tobytes()
    assert last.parameters.tobytes() == models[2].tobytes()


def test_the_model_is_saved_before_it_is_evaluated(process, own, tmp_path):
    """A process that dies in its first evaluation has lost nothing."""
    script = (
        "import os, sys; import rustgpt.validation; from rustgpt.cli import main; "
        "rustgpt.validation.Validation.loss = lambda *_: os._exit(9); main(sys.argv[1:])"
    )
    from .conftest import start_script

    with start_script(script, *own, cwd=tmp_path) as child:
        child.communicate(timeout=60)
    assert child.returncode == 9
    assert rustgpt.LLM.load(tmp_path / "rustgpt-model").config.embedding_dim == 16


def test_the_bundled_data_and_few_dialogues_are_learned_whole(inside, small, monkeypatch):
    shares = []
    fit = rustgpt.Trainer._fit

    def spy(self, texts, epochs, rate, name, part, share, *rest):
        shares.append(share)
        return fit(self, texts, epochs, rate, name, part, share, *rest)

    monkeypatch.setattr(rustgpt.Trainer, "_fit", spy)
    inside("train", *small)
    inside("train", *small, "--overwrite", "--validation-share", "0.2")
    inside("train", *small, "--overwrite", "--tune-validation-share", "0.3")
    monkeypatch.setattr("rustgpt.plan.MANY_DIALOGUES", 2)
    inside("train", *small, "--overwrite")
    assert shares == [0.1, 0.0, 0.2, 0.2, 0.0, 0.3, 0.1, 0.1]
    shares.clear()
    data = rustgpt.Dataset(TEXTS[:3], ["User: a? Assistant: b </s>"], is_bundled=True)
    monkeypatch.setattr(rustgpt.Dataset, "bundled", lambda _: data)
    inside("train", *small[4:], "--overwrite")
    assert shares == [0.0, 0.0]


def test_too_small_to_split_is_said(process, small):
    done = process("train", *small)
    assert done.status == 0
    assert done.err.count("these texts are too small to split: all are learned") == 1


def test_evaluations_and_samples_every_so_many_steps(inside, own):
    done = inside(*own, "--eval-every", "2", "--sample-every", "4")
    assert [int(match[1]) for match in LINE.finditer(done.err)] == [2, 4, 6, 8, 9]
    samples = re.findall(r"pre-training, step (\d+), sample: (\w+ and \w+.*)", done.err)
    assert [int(step) for step, _ in samples] == [4, 8]


def test_in_tuning_a_sample_is_an_answer(inside, small):
    done = inside("train", *small, "--sample-every", "2")
    assert re.search(r"instruction tuning, step 2, sample: How do mountains form\? -> ", done.err)
    assert re.search(r"pre-training, step 2, sample: The sun rises", done.err)


def test_patience_ends_a_phase(inside, own, monkeypatch):
    losses = iter([2.0, 3.0, 3.0, 1.0])
    monkeypatch.setattr("rustgpt.validation.Validation.loss", lambda *_: next(losses))
    done = inside(*own, "--eval-every", "1", "--patience", "2")
    assert [int(match[1]) for match in re.finditer(r"step (\d+): validation loss", done.err)] == [
        1, 2, 3,
    ]  # fmt: skip
    assert done.status == 0
    assert done.err.count("no lower validation loss for 2 evaluations, so the pre-training") == 1


def test_what_counts_in_tuning(inside, small, tmp_path):
    models = {}
    for loss_on in ("assistant", "all", ""):
        flags = ("--loss-on", loss_on) if loss_on else ()
        assert inside("train", *small, *flags, "--out", f"on-{loss_on}").status == 0
        models[loss_on] = (tmp_path / f"on-{loss_on}" / "model.safetensors").read_bytes()
    assert models["assistant"] == models[""] != models["all"]


# Ends


def test_a_limit_ends_both_phases_together(process, small):
    done = process("train", *small[:-4], "--max-steps", "10", "--batch-size", "1")
    assert done.status == 0
    numbers = [int(n) for n in re.findall(r"texts, at most (\d+) steps", done.err)]
    assert sum(numbers) == 10
    assert min(numbers) >= 1
    assert f"step {numbers[0]}/{numbers[0]}" in done.err


@pytest.mark.slow
def test_a_time_limit_as_a_process(process, own):
    done = process(*own[:-2], "--max-time", "1s")
    assert done.status == 0
    assert "at most 1 s" in done.err
    last = re.findall(r"epoch [\d,]+/[\d,]+, loss [\d.]+, step ([\d,]+)/([\d,]+), rate", done.err)[
        -1
    ]
    assert int(last[0].replace(",", "")) > 9


@pytest.mark.slow
def test_a_long_training_says_so_first(inside, own, monkeypatch):
    monkeypatch.setattr(watch, "LONG", 0.0)
    long = "at this pace the training takes about"
    done = inside(*own[:-2], "--eval-every", "50")
    assert done.err.count(long) == 1
    assert done.err.index(long) < done.err.index("epoch 2/20")
    for flags in (["--pretrain-epochs", "2"], ["--max-steps", "5"], ["--max-time", "1s"]):
        assert long not in inside(*own[:-2], *flags, "--overwrite").err
    monkeypatch.setattr(watch, "LONG", 600.0)
    assert long not in inside(*own[:-2], "--overwrite").err


@pytest.mark.parametrize(
    "flags",
    [
        *(["--max-time", bad] for bad in ("-1", "x", "", "nan", "5d")),
        *(["--max-steps", bad] for bad in ("-1", "x", "1.5", "")),
        *(["--validation-share", bad] for bad in ("-1", "0.6", "x", "nan")),
        *(["--sample-every", bad] for bad in ("-1", "x", "1.5")),
        *(["--loss-on", bad] for bad in ("user", "")),
    ],
)
def test_wrong_values_are_refused(inside, own, tmp_path, flags):
    one_line(inside(*own, *flags), 2, flags[0].strip("-")[:3])
    assert not (tmp_path / "rustgpt-model").exists()


# What cannot be done


@pytest.mark.parametrize("flag", ["--eval-every", "--patience"])
def test_what_needs_a_validation_is_refused_without(inside, own, flag, tmp_path):
    done = inside(*own, flag, "2", "--validation-share", "0")
    assert done.status == 2
    assert "hold out a tenth, say, with --validation-share 0.1" in done.err.splitlines()[-1]
    assert not (tmp_path / "rustgpt-model").exists()
    assert inside("train", "--language", "en", flag, "2").status == 2
    assert inside(*own, flag, "2").status == 0


def test_a_best_model_that_cannot_be_saved_does_not_end_the_training(inside, own, monkeypatch):
    original = rustgpt.LLM.save

    def save(self, folder, *more):
        if str(folder).endswith("best"):
            raise rustgpt.CheckpointError("no space left")
        original(self, folder, *more)

    monkeypatch.setattr(rustgpt.LLM, "save", save)
    done = inside(*own)
    assert done.status == 0
    assert "rustgpt: no space left; the training goes on" in done.err
    assert "lowest" not in done.out


def test_ctrl_c_does_not_wait_for_an_evaluation(inside, own, monkeypatch):
    import os
    import signal

    monkeypatch.setattr("rustgpt.validation.TEXTS_AT_ONCE", 1)
    evaluate, calls = Stepper.evaluate, []

    def interrupted(self, rows):
        calls.append(rows)
        os.kill(os.getpid(), signal.SIGINT)
        return evaluate(self, rows)

    monkeypatch.setattr(Stepper, "evaluate", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = inside(*own)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (done.status, len(calls)) == (130, 1)
    assert "holds a good model" in done.err


def test_it_is_killed_whenever_and_the_models_are_whole(own, tmp_path):
    flags = (*own[:-2], "--eval-every", "1", "--max-time", "60s")
    with start(*flags, cwd=tmp_path) as child:
        for _ in range(40):
            assert child.stderr.readline()
        child.kill()
        child.communicate()
    for folder in ("rustgpt-model", "rustgpt-model/best"):
        rustgpt.LLM.load(tmp_path / folder)
