"""Tests of a training that is written down, and goes on from there in Python."""

import json

import numpy as np
import pytest

import rustgpt
from rustgpt import CheckpointError, TrainConfig, Trainer, checkpoint
from rustgpt.training_record import ARRAYS, RECORD, TrainingRecord

TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]
CONFIG = TrainConfig(batch_size=2, threads=1, pretrain_epochs=3, tune_epochs=2)
STEPS = 13


@pytest.fixture
def trained(small):
    """trained(stop): a trainer that was stopped after a step of all phases."""

    def run(stop, trainer=None):
        if trainer is None:
            words = rustgpt.WordTokenizer.train(TEXTS)
            trainer = Trainer(rustgpt.LLM(small(max_seq_len=16), words), CONFIG)
        trainer.on_step = lambda _: trainer.stop() if trainer.steps == stop else None
        for train, texts in ((trainer.pretrain, TEXTS), (trainer.instruction_tune, TEXTS[:4])):
            if trainer.steps < stop:
                train(texts)
        return trainer

    return run


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_the_same_calls_go_on_from_every_step(trained, tmp_path, stop):
    trained(STEPS).save(tmp_path / "whole")
    stopped = trained(stop)
    stopped.notes["mine"] = [1, "a"]
    stopped.save(tmp_path / "run")
    for step in (stop + 1, STEPS):  # twice, for the second time from what the first has written
        trainer = trained(step, Trainer.resume(tmp_path / "run"))
        assert trainer.notes == {"mine": [1, "a"]}
        assert [epoch.number for epoch in trainer.epochs][:3] == [1, 2, 3][: len(trainer.epochs)]
        trainer.save(tmp_path / "run")
    trainer.notes.clear()
    trainer.save(tmp_path / "run")
    assert files(tmp_path / "run") == files(tmp_path / "whole")


def test_a_phase_that_is_complete_returns_at_once(trained, tmp_path):
    trained(10).save(tmp_path / "run")
    steps = []
    trainer = Trainer.resume(tmp_path / "run", on_step=steps.append)
    assert trainer.pretrain(TEXTS) == []
    assert steps == []
    assert trainer.instruction_tune(TEXTS[:4])[-1].number == 2
    assert len(steps) == 3
    assert trainer.pretrain(TEXTS)[-1].number == 3  # once more is a new phase


def test_the_last_phase_may_be_called_alone(trained, tmp_path):
    trained(10).save(tmp_path / "run")
    assert Trainer.resume(tmp_path / "run").instruction_tune(TEXTS[:4])[-1].number == 2


def test_what_it_is_made_with(trained, tmp_path):
    trained(2).save(tmp_path / "run")
    epochs = []
    trainer = Trainer.resume(tmp_path / "run", on_epoch=epochs.append, threads=2)
    assert trainer.config == TrainConfig(**{**CONFIG.to_dict(), "threads": 2})
    trainer.pretrain(TEXTS)
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert Trainer.resume(tmp_path / "run").config == CONFIG


def test_a_complete_phase_leaves_no_optimizer(trained, tmp_path):
    trained(4).save(tmp_path / "run")
    assert {RECORD, ARRAYS} < set(files(tmp_path / "run"))
    trained(9).save(tmp_path / "run")
    assert RECORD in files(tmp_path / "run")
    assert ARRAYS not in files(tmp_path / "run")


def test_a_model_that_is_saved_alone_has_no_training(trained, tmp_path):
    trainer = trained(4)
    trainer.save(tmp_path / "run")
    trainer.model.save(tmp_path / "run")
    assert set(files(tmp_path / "run")) == {"config.json", "model.safetensors", "tokenizer.json"}
    with pytest.raises(CheckpointError, match=r"no state of its training .*--init"):
        Trainer.resume(tmp_path / "run")


def test_what_no_file_can_hold_is_refused_and_what_was_there_stays(trained, tmp_path):
    trainer = trained(4)
    trainer.save(tmp_path / "run")
    before = files(tmp_path / "run")
    for wrong in ({1, 2}, float("nan"), object()):
        trainer.notes["mine"] = wrong
        with pytest.raises(CheckpointError, match="state cannot be written"):
            trainer.save(tmp_path / "run")
    trainer.notes.clear()
    trainer.state.optimizer["m"][3] = np.inf
    with pytest.raises(CheckpointError, match="'m' holds NaN or infinity"):
        trainer.save(tmp_path / "run")
    assert files(tmp_path / "run") == before


def test_an_optimizer_of_ones_own_is_written_down(trained, tmp_path):
    trainer = trained(4)
    trainer.state.optimizer |= {"seen": np.arange(3), "rate": np.float32(0.5), "k": np.int64(3)}
    trainer.save(tmp_path / "run")
    with checkpoint.load(tmp_path / "run") as saved:
        found = TrainingRecord.read(saved).state.optimizer
    assert found["seen"].tolist() == [0, 1, 2]
    assert (found["rate"], found["k"]) == (0.5, 3)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"format": "other"}, '"format"'),
        ({"version": 2}, "newer rustgpt"),
        ({"version": "1"}, "no state of a training"),
        ({"settings": {"batch_size": 0}}, "batch_size"),
        ({"settings": {"unknown": 1}}, "unknown"),
        ({"state": {}}, "missing or unknown"),
        ({"phases": None}, "no state of a training"),
        ({"epochs": [{"phase": "a"}]}, "no state of a training"),
        ({"notes": 3}, "no state of a training"),
        ({"state": None}, "no state of a training"),
    ],
)
def test_what_is_no_record_is_refused(trained, tmp_path, changes, named):
    trainer = trained(4)
    trainer.save(tmp_path / "run")
    content = json.loads((tmp_path / "run" / RECORD).read_text()) | changes
    refused(trainer, tmp_path / "run", json.dumps(content).encode(), named)


def test_a_record_that_lacks_something_is_refused(trained, tmp_path):
    trainer = trained(4)
    trainer.save(tmp_path / "run")
    content = json.loads((tmp_path / "run" / RECORD).read_text())
    for name in content:
        less = {key: value for key, value in content.items() if key != name}
        refused(trainer, tmp_path / "run", json.dumps(less).encode(), name)
    for wrong in (b"", b"[]", b"\xff", b"[" * 100_000):
        refused(trainer, tmp_path / "run", wrong, RECORD)


def test_a_record_from_before_a_setting_goes_on_without_it(trained, tmp_path):
    trainer = trained(4)
    trainer.save(tmp_path / "run")
    content = json.loads((tmp_path / "run" / RECORD).read_text())
    for name in ("tune_replay", "tune_join"):
        assert content["settings"].pop(name)
    trainer.model.save(tmp_path / "run", {RECORD: [json.dumps(content).encode()]})
    with checkpoint.load(tmp_path / "run") as saved:
        config = TrainingRecord.read(saved).config
    assert (config.tune_replay, config.tune_join) == (0, 0)


def refused(trainer, folder, record, named):
    """Assert that a record, whose SHA-256 is right, is refused in one line."""
    trainer.model.save(folder, {RECORD: [record]})
    with pytest.raises(CheckpointError) as caught:
        Trainer.resume(folder)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_files_belong_to_one_save(trained, tmp_path):
    """All are looked at together when they are opened: later another save may have come."""
    trained(4).save(tmp_path / "run")
    (tmp_path / "run" / ARRAYS).write_bytes(b"")
    checkpoint.load(tmp_path / "run").close()
    with pytest.raises(CheckpointError, match=rf"{ARRAYS} is damaged"):
        checkpoint.load(tmp_path / "run", [RECORD, ARRAYS])


@pytest.mark.parametrize("steps", [4, 5, 7])
def test_an_evaluation_that_a_kill_prevents_is_made_up_for(small, tmp_path, steps):
    """Also the last one, of a phase that is over in the midst of an epoch."""
    words = rustgpt.WordTokenizer.train(TEXTS)
    config = TrainConfig(batch_size=1, threads=1, max_steps=steps, validation_share=0.3)
    trainer = Trainer(rustgpt.LLM(small(max_seq_len=16), words), config)
    trainer.before_evaluation = lambda: trainer.save(tmp_path / "killed")
    trainer.pretrain([f"{text} {text}" for text in TEXTS[:3]])
    trainer.save(tmp_path / "whole")
    assert trainer.evaluations[-1].step == steps
    resumed = Trainer.resume(tmp_path / "killed")
    assert len(resumed.evaluations) == len(trainer.evaluations) - 1
    resumed.pretrain([f"{text} {text}" for text in TEXTS[:3]])
    assert resumed.evaluations == trainer.evaluations
    resumed.save(tmp_path / "killed")
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
