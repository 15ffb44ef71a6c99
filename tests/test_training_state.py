"""Tests of what a training needs to go on: its state, and the order of the data."""

import copy
import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rustgpt
from rustgpt.config import TrainConfig
from rustgpt.data_order import DataOrder
from rustgpt.errors import ConfigError
from rustgpt.llm import LLM
from rustgpt.trainer import Trainer
from rustgpt.training_state import TrainingState

pytestmark = pytest.mark.usefixtures("no_batch_is_too_small")
TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]
TIMES = {"tokens_per_second": 0.0, "seconds_left": 0.0}
STEPS = 13  # 3 epochs of 3 steps, then 2 of 2


@pytest.fixture
def model_of(letters, small):
    """model_of(**changes): an untrained model."""

    def make(**changes):
        return LLM(small(**{"embedding_dim": 12, "max_seq_len": 16, "seed": 3} | changes), letters)

    return make


def config_of(**changes):
    settings = {
        "batch_size": 2, "threads": 1, "seed": 1, "schedule": "cosine", "warmup_steps": 2,
        "weight_decay": 0.1, "pretrain_epochs": 3, "pretrain_rate": 1e-2, "tune_epochs": 2,
        "tune_rate": 5e-3,
    }  # fmt: skip
    return TrainConfig(**settings | changes)


class Run:
    """A training in two phases, up to a step of all phases, from a state or the beginning.

    Attributes
    ----------
    trainer, model
        As the run left them.
    epochs, steps : dict
        The complete ones by phase and number, without times.
    then : tuple
        The state, and a copy of the model, as they were told with the last step.
    """

    def __init__(self, model, config, stop=STEPS, state=None):
        self.model, self.stop = model, stop
        self.epochs, self.steps, self.then = {}, {}, None
        self.trainer = Trainer(model, config, self._on_epoch, self._on_step, state=state)
        before = self.trainer.state
        phases = [(self.trainer.pretrain, TEXTS), (self.trainer.instruction_tune, TEXTS[:4])]
        for train, texts in phases[before.phase_number + before.complete :]:
            train(texts)
            if self.trainer.stopped:
                break

    def _on_epoch(self, epoch):
        assert epoch.complete
        self.epochs[epoch.phase, epoch.number] = dataclasses.replace(epoch, **TIMES)

    def _on_step(self, step):
        self.steps[step.phase, step.number] = step
        if self.trainer.steps == self.stop:
            self.then = self.trainer.state.copy(), copy.deepcopy(self.model)
            self.trainer.stop()


def through_files(state, folder):
    """Return a state that was written to two files and read from them."""
    values, arrays = state.to_parts()
    (folder / "state.json").write_text(json.dumps(values))
    np.savez(folder / "state.npz", **arrays)
    with np.load(folder / "state.npz") as read:
        return TrainingState.from_parts(json.loads((folder / "state.json").read_text()), dict(read))


def same_states(found, expected):
    """Assert that two states are equal, bit for bit."""
    (values, arrays), (other_values, other_arrays) = found.to_parts(), expected.to_parts()
    assert values == other_values
    assert set(arrays) == set(other_arrays) == {"m", "v"}
    for name, array in arrays.items():
        assert array.dtype == other_arrays[name].dtype
        assert array.tobytes() == other_arrays[name].tobytes()


# To go on


@pytest.fixture(params=[(1, 10**9), (2, 10**9), (2, 0)], ids=["alone", "2 threads", "one buffer"])
def config(request, monkeypatch):
    """The settings of a training, of which each step depends on the steps before."""
    threads, shared_from = request.param
    monkeypatch.setattr("rustgpt.parallel.data_parallel.SHARED_FROM", shared_from)
    return config_of(threads=threads, dropout=0.2)


# The first step, mid-epoch, the end of an epoch and of a phase, and the same of the second phase.
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6, 8, 9, 10, 11, 12])
@pytest.mark.parametrize("when", ["after fit", "in on_step"])
def test_a_training_that_was_stopped_goes_on_to_the_same_end(
    backend, model_of, config, tmp_path, stop, when
):
    whole = Run(model_of(), config)
    first = Run(model_of(), config, stop)
    assert (first.trainer.steps, first.trainer.stopped) == (stop, True)
    state, model = first.trainer.state.copy(), copy.deepcopy(first.model)
    if when == "in on_step":
        state, model = first.then
    second = Run(model, config, state=through_files(state, tmp_path))
    assert model.parameters.tobytes() == whole.model.parameters.tobytes()
    same_states(second.trainer.state, whole.trainer.state)
    assert second.trainer.state.steps == STEPS
    assert not first.steps.keys() & second.steps.keys()
    assert first.steps | second.steps == whole.steps
    assert len(whole.epochs) == 5
    assert first.epochs | second.epochs == second.epochs | first.epochs == whole.epochs


def test_a_training_may_be_stopped_at_each_step(model_of, tmp_path):
    config = config_of(threads=2)
    whole, model, state, epochs = Run(model_of(), config), model_of(), None, {}
    for stop in range(1, STEPS + 1):
        run = Run(model, config, stop, state)
        assert len(run.steps) == 1
        epochs |= run.epochs
        state, model = through_files(run.trainer.state, tmp_path), copy.deepcopy(model)
    assert model.parameters.tobytes() == whole.model.parameters.tobytes()
    same_states(state, whole.trainer.state)
    assert epochs == whole.epochs
    assert state.complete


def test_another_state_goes_on_to_another_end(model_of):
    """So the tests above would fail if any of these were not taken up."""
    config = config_of()
    whole, first = Run(model_of(), config), Run(model_of(), config, 5)
    state = first.trainer.state
    for changes in (
        {"optimizer": state.optimizer | {"m": 0 * state.optimizer["m"]}},
        {"optimizer": state.optimizer | {"v": 2 * state.optimizer["v"]}},
        {"optimizer": state.optimizer | {"steps": 1}}, {"step": 3}, {"position": 1}, {"epoch": 0},
    ):  # fmt: skip
        model, other = copy.deepcopy(first.model), dataclasses.replace(state, **changes)
        Trainer(model, config, state=other).pretrain(TEXTS)
        same = copy.deepcopy(first.model)
        Trainer(same, config, state=state).pretrain(TEXTS)
        assert model.parameters.tobytes() != same.parameters.tobytes(), changes
    assert whole.trainer.steps == STEPS


def test_a_state_is_a_copy_of_what_goes_on(model_of):
    first = Run(model_of(), config_of(), 5)
    state, kept = first.trainer.state.copy(), first.then[0]
    trainer = Trainer(first.model, config_of(), state=state)
    trainer.pretrain(TEXTS)
    trainer.instruction_tune(TEXTS[:4])
    same_states(state, kept)
    assert trainer.steps == STEPS
    assert not np.shares_memory(trainer.state.optimizer["m"], state.optimizer["m"])


def test_a_copy_stays_as_it_was_while_the_training_goes_on(model_of):
    def keep(_):
        kept.append(trainer.state.copy())

    kept, stopped = [], Run(model_of(), config_of(), 5)
    trainer = Trainer(model_of(), config_of(), on_step=keep)
    trainer.pretrain(TEXTS)
    same_states(kept[4], stopped.then[0])
    assert kept[4].optimizer["m"].tobytes() != kept[5].optimizer["m"].tobytes()


@pytest.mark.parametrize("stop", [0, 1, 5])
def test_a_stop_before_the_first_step_of_a_run_changes_nothing(model_of, monkeypatch, stop):
    """As by a signal, when the training is about to begin or to go on."""

    def order_and_a_signal(*given):
        trainer.stop()
        return DataOrder(*given)

    model, state = model_of(), None
    if stop:
        state = Run(model, config_of(), stop).trainer.state
    before = model.parameters.copy()
    monkeypatch.setattr("rustgpt.phase.DataOrder", order_and_a_signal)
    trainer = Trainer(model, config_of(), lambda _: 1 / 0, lambda _: 1 / 0, state=state)
    assert trainer.pretrain(TEXTS) == trainer.epochs == []
    assert (trainer.stopped, trainer.steps) == (True, stop)
    np.testing.assert_array_equal(model.parameters, before)
    if state:
        same_states(trainer.state, state)


def test_the_state_tells_how_far_it_has_come(model_of):
    def told(stop):
        state = Run(model_of(), config_of(), stop).trainer.state
        return (
            state.phase, state.phase_number, state.epochs, state.epoch, state.position,
            state.step, state.steps, state.complete,
        )  # fmt: skip

    assert told(1) == ("pre-training", 0, 3, 0, 1, 1, 1, False)
    assert told(3) == ("pre-training", 0, 3, 1, 0, 3, 3, False)
    assert told(5) == ("pre-training", 0, 3, 1, 2, 5, 5, False)
    assert told(9) == ("pre-training", 0, 3, 3, 0, 9, 9, True)
    assert told(12) == ("instruction tuning", 1, 2, 1, 1, 3, 12, False)
    assert told(13) == ("instruction tuning", 1, 2, 2, 0, 4, 13, True)


def test_a_trainer_that_did_nothing_has_a_state(model_of, tmp_path):
    state = Trainer(model_of(), config_of(seed=7)).state
    assert (state.seed, state.phase_number, state.steps, state.complete) == (7, -1, 0, True)
    whole, later = Run(model_of(), config_of()), model_of()
    Run(later, config_of(), state=through_files(Trainer(later, config_of()).state, tmp_path))
    assert later.parameters.tobytes() == whole.model.parameters.tobytes()


# States that do not fit


@pytest.fixture
def stopped(model_of):
    """A training that was stopped in its fifth step."""
    return Run(model_of(), config_of(), 5)


def refused(state, model, match, config=None, texts=TEXTS):
    """Assert that a training does not go on from a state, and leaves the model as it is."""
    before = model.parameters.copy()
    with pytest.raises(ConfigError, match=match):
        Trainer(model, config or config_of(), state=state).pretrain(texts)
    np.testing.assert_array_equal(model.parameters, before)


def test_another_training_is_refused(stopped, model_of):
    state, model = stopped.trainer.state, stopped.model
    refused(state, model, "had seed 1, not 2", config_of(seed=2))
    refused(state, model, r"stopped in pre-training of 3 .*of 4", config_of(pretrain_epochs=4))
    refused(state, model_of(embedding_dim=10), "not the state of an Adam for [0-9,]+ parameters")
    trainer = Trainer(model, config_of(), state=state)
    with pytest.raises(ConfigError, match=r"pre-training of 3 .*not in instruction tuning of 2"):
        trainer.instruction_tune(TEXTS)
    with pytest.raises(ConfigError, match=r"pre-training of 3 .*not in mine of 3"):
        trainer.fit(TEXTS, 3, 1e-2, "mine")
    assert trainer.pretrain(TEXTS)[-1].number == 3  # and it may still go on


def test_a_state_beyond_the_data_is_refused(stopped):
    """As when the texts, or a step, are others: here there are fewer steps than were made."""
    refused(stopped.trainer.state, stopped.model, "(?i)data|text|step", texts=TEXTS[:2])


def test_fields_that_are_missing_or_unknown_are_refused(stopped):
    values, arrays = stopped.trainer.state.to_parts()
    for name in values:
        less = {key: value for key, value in values.items() if key != name}
        with pytest.raises(ConfigError, match=f"missing or unknown: {name}"):
            TrainingState.from_parts(less, arrays)
    with pytest.raises(ConfigError, match="missing or unknown: more"):
        TrainingState.from_parts({**values, "more": 1}, arrays)
    with pytest.raises(ConfigError, match="missing or unknown"):
        TrainingState.from_parts({}, {})


WHOLE = ("seed", "phase_number", "epochs", "epoch", "position", "step", "steps", "tokens")
REAL = ("loss", "largest_norm")


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *itertools.product(WHOLE, [True, 1.0, "1", None, [1]]),
        *itertools.product(REAL, [True, "1", None, [1.0]]),
        *itertools.product(("phase",), [1, True, None, ["pre-training"]]),
        *itertools.product(("optimizer",), [1, True, None, [1], "m"]),
    ],
)
def test_values_of_another_type_are_refused(stopped, name, wrong):
    values, arrays = stopped.trainer.state.to_parts()
    with pytest.raises(ConfigError, match=f"^{name} of a training's state must be of type"):
        TrainingState.from_parts({**values, name: wrong}, arrays)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        *itertools.product(
            ("seed", "epochs", "epoch", "position", "step", "steps"), [-1, -(2**70)]
        ),
        *itertools.product(("tokens",), [-1]),
        *itertools.product(("phase_number",), [-2]),
        *itertools.product(REAL, [math.nan, math.inf, -math.inf, -1.0]),
    ],
)
def test_numbers_that_cannot_be_are_refused(stopped, name, wrong):
    values, arrays = stopped.trainer.state.to_parts()
    with pytest.raises(ConfigError, match=name):
        TrainingState.from_parts({**values, name: wrong}, arrays)


@pytest.mark.parametrize("wrong", [-1, True, math.nan, 2.5, "5", None, [5]])
def test_an_optimizer_refuses_steps_that_cannot_be(stopped, wrong):
    values, arrays = stopped.trainer.state.to_parts()
    state = TrainingState.from_parts({**values, "optimizer": {"steps": wrong}}, arrays)
    refused(state, stopped.model, "steps")


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_an_optimizer_refuses_moments_that_cannot_be(stopped, wrong):
    values, arrays = stopped.trainer.state.to_parts()
    arrays = {name: array.copy() for name, array in arrays.items()}
    arrays["v"][3] = wrong
    refused(TrainingState.from_parts(values, arrays), stopped.model, "v")


@pytest.mark.parametrize("kind", [str, complex, object, bool])
def test_an_optimizer_refuses_moments_that_are_no_numbers(stopped, kind):
    values, arrays = stopped.trainer.state.to_parts()
    state = TrainingState.from_parts(values, {**arrays, "m": arrays["m"].astype(kind)})
    refused(state, stopped.model, "m")


# The order of the data


@pytest.mark.parametrize("n", [0, 1, 2, 7, 100])
def test_an_order_is_a_permutation(n):
    for seed, phase, epoch in itertools.product((0, 1, 2**63 - 1), (0, 1), (0, 1, 9)):
        assert sorted(DataOrder(n, seed, phase, epoch)[:].tolist()) == list(range(n))


def test_each_seed_phase_and_epoch_has_its_own_order():
    places = list(itertools.product(range(4), range(4), range(4)))
    orders = {place: tuple(DataOrder(30, *place)[:].tolist()) for place in places}
    assert len(set(orders.values())) == len(places)
    np.random.default_rng(5).random()
    assert all(
        tuple(DataOrder(30, *place)[:].tolist()) == orders[place] for place in reversed(places)
    )


def orders_seen(model_of, monkeypatch, stop=STEPS, state=None, texts=16):
    """Return which texts each step of two epochs of both phases has, in their order."""
    orders, found = [], state

    def step(self, batch, rate, where, number):
        orders.append([int(row[1]) for row in batch])
        return 1.0, 1.0

    monkeypatch.setattr("rustgpt.stepper.Stepper.step", step)
    config = config_of(batch_size=8, pretrain_epochs=2, tune_epochs=2)
    trainer = Trainer(
        model_of(), config, state=found,
        on_step=lambda _: trainer.steps == stop and trainer.stop(),
    )  # fmt: skip
    rows = [[0, 1 + i] for i in range(texts)]
    for phase in ("pre-training", "instruction tuning"):
        if not trainer.stopped and (state is None or state.phase == phase):
            trainer.fit_ids(rows, 2, 1e-2, phase)
    return orders, trainer.state


def test_a_training_follows_the_orders(model_of, monkeypatch):
    orders, _ = orders_seen(model_of, monkeypatch)
    expected = [1 + DataOrder(16, 1, phase, epoch)[:] for phase in (0, 1) for epoch in (0, 1)]
    assert orders == [half.tolist() for order in expected for half in (order[:8], order[8:])]
    assert len({tuple(order) for order in orders}) == 8


def test_an_epoch_that_is_gone_on_with_has_the_rest_of_its_order(model_of, monkeypatch):
    whole, _ = orders_seen(model_of, monkeypatch)
    first, state = orders_seen(model_of, monkeypatch, stop=3)
    second, _ = orders_seen(model_of, monkeypatch, state=state.copy())
    assert first + second == whole[:4]


def test_a_fresh_process_computes_the_same_order(model_of, monkeypatch, tmp_path):
    """Whatever it has done before, and whatever the seed of its hashes."""
    orders, _ = orders_seen(model_of, monkeypatch)
    code = (
        "import json; from rustgpt.data_order import DataOrder; "
        "print(json.dumps([DataOrder(16, 1, phase, 1)[:].tolist() for phase in (0, 1)]))"
    )
    environment = os.environ | {
        "PYTHONPATH": str(Path(rustgpt.__file__).parents[1]), "PYTHONHASHSEED": "7",
    }  # fmt: skip
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    second_epochs = [orders[2] + orders[3], orders[6] + orders[7]]
    assert [[1 + i for i in order] for order in json.loads(found.stdout)] == second_epochs
