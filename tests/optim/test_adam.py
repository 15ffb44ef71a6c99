"""Tests of the Adam optimizer over a model's flat buffers, and of what decays."""

import math

import numpy as np
import pytest

from rustgpt.config import TrainConfig
from rustgpt.errors import ConfigError
from rustgpt.llm import LLM
from rustgpt.optim.adam import Adam, matrices, stretches
from rustgpt.stepper import adam as adam_of


def test_two_steps_written_out(backend, dtype):
    # beta1 = beta2 = 0.5, epsilon = 1, rate 0.1, gradients 1 and then 3.
    parameters = np.array([10.0], dtype)
    adam = Adam(parameters, beta1=0.5, beta2=0.5, epsilon=1.0)
    adam.begin_step()
    adam.update(np.array([1.0], dtype), 0.1)
    # m = 0.5, v = 0.5, and both corrected 1: 10 - 0.1 * 1 / (1 + 1)
    assert parameters[0] == pytest.approx(9.95)
    adam.begin_step()
    adam.update(np.array([3.0], dtype), 0.1)
    # m = 1.75, corrected 1.75 / 0.75; v = 4.75, corrected 4.75 / 0.75
    step = 0.1 * (1.75 / 0.75) / (math.sqrt(4.75 / 0.75) + 1)
    assert parameters[0] == pytest.approx(9.95 - step)
    assert adam.m.tolist() == [1.75]
    assert adam.v.tolist() == [4.75]
    assert adam.steps == 2


def test_weight_decay_takes_a_share_of_the_decayed_parts_alone(backend, dtype):
    parameters = np.array([10, 20, 30, 40, 50, 60], dtype)
    decayed = (slice(3, 4), slice(1, 3))  # in any order
    adam = Adam(parameters, weight_decay=0.5, decayed=decayed)
    adam.begin_step()
    adam.update(np.zeros(6, dtype), 0.1)
    assert parameters.tolist() == pytest.approx([10, 19, 28.5, 38, 50, 60])


def test_without_weight_decay_a_zero_gradient_moves_nothing(backend, dtype):
    parameters = np.array([10, 20], dtype)
    adam = Adam(parameters, decayed=(slice(0, 2),))
    adam.begin_step()
    adam.update(np.zeros(2, dtype), 0.1)
    assert parameters.tolist() == [10, 20]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_parts_together_are_the_whole(backend, rng, decay):
    start, decayed = rng.standard_normal(50), (slice(7, 20), slice(20, 31), slice(40, 50))
    whole, parts = start.copy(), start.copy()
    one = Adam(whole, weight_decay=decay, decayed=decayed)
    two = Adam(parts, weight_decay=decay, decayed=decayed)
    for _ in range(3):
        gradients = rng.standard_normal(50)
        one.begin_step()
        one.update(gradients, 0.01, 0.5)
        two.begin_step()
        for part in (slice(0, 1), slice(1, 25), slice(25, 25), slice(25, 50)):
            two.update(gradients, 0.01, 0.5, part)
    np.testing.assert_array_equal(parts, whole)
    assert (whole != start).all()


def test_the_gradient_scale_is_a_factor(backend, rng):
    gradients, parameters = rng.standard_normal(9), np.zeros((2, 9))
    for row, (factor, scale) in zip(parameters, [(0.25, 1.0), (1.0, 0.25)], strict=True):
        adam = Adam(row, epsilon=1.0)
        adam.begin_step()
        adam.update(factor * gradients, 0.1, scale)
    np.testing.assert_allclose(parameters[0], parameters[1])
    assert parameters.all()


def test_it_finds_the_bottom_of_a_bowl(backend, rng, dtype):
    bottom = rng.standard_normal(20).astype(dtype)
    parameters = np.zeros(20, dtype)
    adam = Adam(parameters)
    for _ in range(400):
        adam.begin_step()
        adam.update(2 * (parameters - bottom), 0.02)
    np.testing.assert_allclose(parameters, bottom, atol=1e-3)


# Its state


def test_it_goes_on_from_its_state(backend, rng, dtype):
    start = rng.standard_normal(30).astype(dtype)
    gradients = rng.standard_normal((6, 30)).astype(dtype)
    whole, parts = start.copy(), start.copy()
    one = Adam(whole, weight_decay=0.1, decayed=(slice(3, 9),))
    for row in gradients:
        one.begin_step()
        one.update(row, 0.01)
    state = Adam(parts).state()
    for row in gradients:  # with another optimizer for each step
        another = Adam(parts, weight_decay=0.1, decayed=(slice(3, 9),))
        another.take_up(state)
        another.begin_step()
        another.update(row, 0.01)
        state = another.state()
    np.testing.assert_array_equal(parts, whole)
    assert state["steps"] == one.steps == 6
    np.testing.assert_array_equal((state["m"], state["v"]), (one.m, one.v))


def test_what_is_taken_up_is_copied(rng):
    given = {"steps": 3, "m": rng.standard_normal(5), "v": rng.random(5)}
    kept = {name: np.copy(value) for name, value in given.items()}
    adam = Adam(np.zeros(5))
    adam.take_up(given)
    adam.begin_step()
    adam.update(np.ones(5), 0.1)
    for name, value in kept.items():
        np.testing.assert_array_equal(given[name], value)
    assert adam.steps == 4
    assert (adam.m != kept["m"]).all()


@pytest.mark.parametrize(
    "changes",
    [{"m": np.zeros(4)}, {"v": np.zeros((5, 1))}, {"m": None}, {"v": 0.0}, {"steps": None}],
)
def test_the_state_of_another_optimizer_is_refused(changes):
    given = {"steps": 3, "m": np.ones(5), "v": np.ones(5)} | changes
    adam = Adam(np.zeros(5))
    given = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(ConfigError, match="not the state of an Adam for 5 parameters: it has"):
        adam.take_up(given)
    assert (adam.steps, adam.m.any(), adam.v.any()) == (0, False, False)


# What decays

DECAYED = {
    "layers.0.tokens", "layers.0.places",
    "layers.1.attention.qkv_weight", "layers.1.attention.projection_weight",
    "layers.1.feed_forward.weight1", "layers.1.feed_forward.weight2",
    "layers.3.weight",
}  # fmt: skip
NOT_DECAYED = {
    "layers.1.attention.qkv_bias", "layers.1.attention.projection_bias",
    "layers.1.norm1.weight", "layers.1.norm1.bias", "layers.1.feed_forward.bias1",
    "layers.1.feed_forward.bias2", "layers.1.norm2.weight", "layers.1.norm2.bias",
    "layers.2.weight", "layers.2.bias", "layers.3.bias",
}  # fmt: skip


@pytest.fixture
def model(letters, small):
    """A model with every kind of parameter."""
    return LLM(small(n_layers=1, norm="pre", attention_bias=True, dtype="float64"), letters)


def test_matrices_are_named(model):
    named = model.named_parameters()
    assert set(named) == DECAYED | NOT_DECAYED
    assert set(matrices(named)) == DECAYED
    tied = LLM(model.config.from_dict({**model.config.to_dict(), "tie_embeddings": True}),
               model.tokenizer)  # fmt: skip
    assert set(matrices(tied.named_parameters())) == DECAYED - {"layers.3.weight"}


@pytest.mark.parametrize("names", [DECAYED, NOT_DECAYED, set(), {"layers.2.bias"}])
def test_stretches_are_where_the_names_are_in_the_buffer(model, names):
    inside = np.zeros(model.n_parameters, bool)
    found = stretches(model.named_parameters(), names)
    for part in found:
        inside[part] = True
    model.parameters[:] = inside
    assert len(found) == len(names)
    for name, value in model.named_parameters().items():
        assert (value == (name in names)).all(), name


def test_a_trainings_adam_decays_all_matrices_no_biases_and_no_norms(backend, model):
    model.parameters[:] = 1.0
    adam = adam_of(model, TrainConfig(weight_decay=0.5, beta1=0.8, beta2=0.7, epsilon=0.01))
    assert adam.parameters is model.parameters
    assert (adam.beta1, adam.beta2, adam.epsilon) == (0.8, 0.7, 0.01)
    adam.begin_step()
    adam.update(np.zeros(model.n_parameters), 0.1)
    for name, value in model.named_parameters().items():
        np.testing.assert_allclose(value, 0.95 if name in DECAYED else 1.0, rtol=1e-12)


def test_names_choose_what_decays(backend, model):
    """As for groups of one's own: all but the embeddings, say."""
    model.parameters[:] = 1.0
    named = model.named_parameters()
    names = [name for name in matrices(named) if not name.startswith("layers.0.")]
    adam = Adam(model.parameters, weight_decay=0.5, decayed=stretches(named, names))
    adam.begin_step()
    adam.update(np.zeros(model.n_parameters), 0.1)
    assert {name for name, value in named.items() if (value != 1).all()} == set(names)
    assert {name for name, value in named.items() if (value == 1).all()} == {*named} - {*names}
