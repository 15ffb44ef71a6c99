"""The plan of a training, and the whole way in one line."""

import json

import pytest

import rustgpt
from rustgpt.config import UNLIMITED, ModelConfig, TrainConfig
from rustgpt.errors import CheckpointError, ConfigError, DataError
from rustgpt.plan import for_data, phases_of, train
from rustgpt.text.dataset import Dataset

SMALL = ModelConfig(embedding_dim=16, hidden_dim=16, n_layers=1, n_heads=2, max_seq_len=40)
SETTINGS = TrainConfig(
    pretrain_epochs=2, tune_epochs=60, pretrain_rate=1e-2, tune_rate=1e-2, threads=1
)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps(["Bees carry pollen", "Water is wet"]))
    rows = [{"question": "What do bees carry?", "answer": "Pollen."}]
    (tmp_path / "chat.json").write_text(json.dumps(rows))
    return tmp_path


def test_the_whole_way_in_one_line(data):
    model = rustgpt.train(data, model=SMALL, training=SETTINGS, out=data / "model")
    assert model.chat().send("What do bees carry?") == "Pollen."
    again = rustgpt.Trainer.resume(data / "model")
    assert again.model.chat().send("What do bees carry?") == "Pollen."
    assert again.state.steps == 2 + 60


def test_it_ends_when_the_minutes_are_over(data):
    model = train([data / "facts.json"], minutes=0.01, model=SMALL, tokenizer="char")
    assert model.config == SMALL
    assert "B" in model.tokenizer.tokens("Bees")


def test_minutes_and_settings_are_one_too_many(data):
    with pytest.raises(ConfigError, match="give minutes, or a training with its max_time"):
        train(data, 1, training=SETTINGS)


@pytest.mark.parametrize("minutes", [0, -1, float("nan")])
def test_no_time_is_not_as_long_as_it_takes(data, minutes):
    with pytest.raises(ConfigError, match="minutes must be above 0"):
        train(data, minutes)


def test_a_folder_that_cannot_be_saved_into_is_found_before_the_training(data, monkeypatch):
    monkeypatch.setattr(rustgpt.Trainer, "pretrain", lambda *_: pytest.fail("it was trained"))
    with pytest.raises(CheckpointError, match="it is a file, no folder"):
        train(data, 1, out=data / "facts.json")


def test_data_that_are_not_there(tmp_path):
    with pytest.raises(DataError, match="missing"):
        train(tmp_path / "missing", 1)


def test_the_parts_of_the_phases_are_as_large_as_what_they_read():
    dataset = Dataset(["a" * 30 + " </s>"] * 4, ["User: a Assistant: b </s>"])
    first, second = phases_of(dataset, TrainConfig(pretrain_epochs=10, tune_epochs=20))
    assert (first.epochs, second.epochs) == (10, 20)
    assert first.part + second.part == pytest.approx(1)
    assert first.part / second.part == pytest.approx(4 * 35 * 10 / (25 * 20), rel=0.05)
    assert (first.tunes, second.tunes) == (False, True)


@pytest.mark.parametrize(("n", "share"), [(10, 0.0), (1000, 0.1)])
def test_few_dialogues_are_all_learned(n, share):
    dataset = Dataset(["a b"], ["User: a Assistant: b </s>"] * n)
    config = for_data(TrainConfig(), dataset)
    assert (config.validation_share, config.tune_validation_share) == (0.1, share)


def test_the_training_on_own_texts_ends_when_it_gets_no_better():
    dataset = Dataset(["a b"] * 20, [])
    assert for_data(TrainConfig(), dataset).patience == 5
    for name in ("patience", "pretrain_epochs", "max_steps", "max_tokens", "max_time"):
        assert for_data(TrainConfig(), dataset, {name}).patience == 0
    nothing_held_out = for_data(TrainConfig(), dataset, ["validation_share"])
    assert nothing_held_out == TrainConfig()


def test_the_bundled_data_have_epochs_and_rates_of_their_own():
    dataset = Dataset(["a b"], ["User: a? Assistant: b"], is_bundled=True)
    config = for_data(TrainConfig(seed=3), dataset)
    assert (config.pretrain_epochs, config.tune_epochs, config.tune_rate) == (12, 8, 3e-3)
    assert (config.seed, config.patience, config.validation_share) == (3, 0, 0)
    config = for_data(TrainConfig(tune_epochs=30, tune_rate=1e-3), dataset, {"tune_epochs"})
    assert (config.pretrain_epochs, config.tune_epochs, config.tune_rate) == (12, 30, 3e-3)
    config = for_data(TrainConfig(max_steps=5), dataset, {"max_steps"})
    assert config.tune_epochs == config.pretrain_epochs == UNLIMITED


def test_statements_are_learned_again_unless_they_were_not_learned():
    dataset = Dataset(["a b"], ["User: a? Assistant: b"])
    assert phases_of(dataset, TrainConfig())[1].statements == ["a b"]
    assert not phases_of(dataset, TrainConfig(pretrain_epochs=0))[1].statements


def test_a_tuning_is_given_the_statements(monkeypatch):
    given = []
    monkeypatch.setattr(
        "rustgpt.trainer.Trainer.instruction_tune", lambda self, *args: given.append(args)
    )
    dataset = Dataset(["a b"], ["User: a? Assistant: b"])
    model = rustgpt.LLM.from_dataset(dataset, SMALL)
    phases_of(dataset, SETTINGS)[1].learn(rustgpt.Trainer(model, SETTINGS))
    assert given == [(dataset.tuning_data, pytest.approx(0.97, abs=0.03), ["a b"])]


@pytest.mark.parametrize(
    ("n", "given", "epochs"),
    [(16, (), 200), (17, (), 189), (1, (), 3200), (200, (), 30), (0, (), 30),
     (16, ("tune_epochs",), 30), (16, ("max_time",), 30), (16, ("pretrain_epochs",), 200)],
)  # fmt: skip
def test_few_dialogues_are_seen_more_often(n, given, epochs):
    dataset = Dataset(["a b"], ["User: a Assistant: b </s>"] * n)
    assert for_data(TrainConfig(), dataset, given).tune_epochs == epochs
    assert for_data(TrainConfig(), dataset, given, anew=False).tune_epochs == 30
