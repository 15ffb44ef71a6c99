"""Tests of one step of training: gradients, norm, clipping and update."""

import copy
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from rustgpt.backend import backend_name, has_bfloat16, use_backend
from rustgpt.config import TrainConfig
from rustgpt.errors import TrainingError
from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.llm import LLM
from rustgpt.stepper import Stepper

LENGTHS = (9, 3, 14, 1, 7, 11)
RATE = 0.01


@pytest.fixture(params=["a buffer a thread", "one buffer"], autouse=True)
def shared(request, monkeypatch):
    """Let several threads make small steps, with gradients for each or one buffer for all."""
    found = request.param == "one buffer"
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)
    monkeypatch.setattr("rustgpt.parallel.data_parallel.SHARED_FROM", 0 if found else 10**9)
    return found


@pytest.fixture
def model_of(letters, small):
    """model_of(**changes): an untrained model, in float64 unless changed."""

    def make(**changes):
        settings = {"dtype": "float64", "max_seq_len": 16, "seed": 3, "attention_bias": True}
        return LLM(small(**settings | changes), letters)

    return make


@pytest.fixture
def batch(rng):
    """Texts of 1 to 14 tokens and one that follows."""
    return [rng.integers(0, 28, length + 1).astype(np.int32) for length in LENGTHS]


def config_of(**changes):
    return TrainConfig(**{"batch_size": len(LENGTHS), "threads": 1, "epsilon": 1e-3} | changes)


def steps(model, batch, n=3, **settings):
    """Make n steps; return the loss and the norm of each."""
    with Stepper(model, config_of(**settings)) as stepper:
        return [stepper.step(batch, RATE) for _ in range(n)]


class PlainAdam:
    """AdamW as its papers write it, in plain NumPy, with gradients that are clipped before.

    The gradients are those of all texts at once, in one thread, of the kernels in plain NumPy.
    """

    def __init__(self, model, config):
        self.model, self.config, self.t = copy.deepcopy(model), config, 0
        self.moments = [(0.0, 0.0)] * len(model.named_parameters())

    def step(self, batch, rate):
        """Return the sum of the losses and the norm."""
        loss, gradients = self._differentiate(batch)
        norm = np.linalg.norm(np.concatenate([g.ravel() for g in gradients]))
        factor = min(1.0, self.config.max_grad_norm / norm)
        self.t += 1
        beta1, beta2, config = self.config.beta1, self.config.beta2, self.config
        for i, (value, g) in enumerate(
            zip(self.model.named_parameters().values(), gradients, strict=True)
        ):
            g = factor * g
            m, v = self.moments[i]
            m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
            self.moments[i] = m, v
            m, v = m / (1 - beta1**self.t), v / (1 - beta2**self.t)
            decay = config.weight_decay if value.ndim == 2 else 0.0
            value -= rate * (m / (np.sqrt(v) + config.epsilon) + decay * value)
        return loss, norm

    def _differentiate(self, batch):
        before, gradients = backend_name(), Gradients(self.model.layers)
        ids, targets = (np.concatenate([row[p] for row in batch]) for p in (np.s_[:-1], np.s_[1:]))
        offsets = np.cumsum([0, *(len(row) - 1 for row in batch)], dtype=np.int32)
        gradients.begin()
        use_backend("reference")
        try:
            ctx = Context(offsets, "float64", gradients=gradients)
            loss = self.model.loss_and_gradients(ids, targets, 1 / len(ids), ctx)
        finally:
            use_backend(before)
        gradients.finish()
        named = self.model.named_parameters().values()
        return loss, [gradients.claim(value)[0].copy() for value in named]


# What a step does


@pytest.mark.parametrize("threads", [1, 2, 3, 9])
@pytest.mark.parametrize("limit", [0.05, 1e3])
@pytest.mark.parametrize("tied", [False, True])
def test_steps_are_those_of_plain_numpy(backend, model_of, batch, threads, limit, tied):
    """The loss, the norm, clipping, decay and both moments, each parameter by itself."""
    model = model_of(tie_embeddings=tied)
    config = config_of(threads=threads, max_grad_norm=limit, weight_decay=0.3, beta2=0.9)
    plain, norms = PlainAdam(model, config), []
    begun = {name: value.copy() for name, value in model.named_parameters().items()}
    with Stepper(model, config) as stepper:
        for rows in (batch, batch[:1], batch[1:3], batch):
            expected = plain.step(rows, RATE)
            norms.append(expected[1])
            assert stepper.step(rows, RATE) == pytest.approx(expected, rel=1e-10)
    assert (min(norms) > limit) == (limit < 1)  # clipped always, or never
    for name, value in model.named_parameters().items():
        moved = plain.model.named_parameters()[name] - begun[name]
        error = np.abs(value - begun[name] - moved).max()
        assert error <= 1e-9 * np.abs(moved).max() > 0, name


@pytest.mark.parametrize("threads", [2, 3, 6])
@pytest.mark.parametrize("texts", [6, 2, 1])
def test_any_number_of_threads_makes_the_same_step(backend, model_of, batch, threads, texts):
    alone, together = model_of(), model_of()
    expected = steps(alone, batch[:texts], max_grad_norm=0.5)
    found = steps(together, batch[:texts], threads=threads, max_grad_norm=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(together.parameters, alone.parameters, rtol=0, atol=1e-11)
    assert np.abs(alone.parameters - model_of().parameters).max() > RATE


def test_the_same_number_of_threads_gives_the_same_bits(backend, model_of, batch):
    models = [model_of(dtype="float32") for _ in range(3)]
    for model in models:
        steps(model, batch, 5, threads=3)
    assert len({model.parameters.tobytes() for model in models}) == 1
    assert models[0].parameters.tobytes() != model_of(dtype="float32").parameters.tobytes()


def test_a_rate_of_zero_leaves_all_as_it_is(backend, model_of, batch):
    model = model_of()
    before = model.parameters.copy()
    with Stepper(model, config_of(threads=2, weight_decay=0.3)) as stepper:
        first = stepper.step(batch, 0.0)
        assert stepper.step(batch, 0.0) == first
    np.testing.assert_array_equal(model.parameters, before)


# A step that is not applied


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_that_diverged_is_not_applied(backend, model_of, batch, threads):
    model = model_of()
    with Stepper(model, config_of(threads=threads)) as stepper:
        stepper.step(batch, RATE)  # so that there are moments
        good, adam = model.parameters.copy(), stepper.optimizer
        moments = adam.m.copy(), adam.v.copy()
        assert moments[0].any()
        model.layers[-1].bias[3] = np.nan
        before = model.parameters.copy()
        with pytest.raises(TrainingError, match="diverged at the third: the loss is nan"):
            stepper.step(batch, RATE, "the third")
        np.testing.assert_array_equal(model.parameters, before)
        np.testing.assert_array_equal((adam.m, adam.v), moments)
        model.parameters = good
        loss, norm = stepper.step(batch, RATE)  # and it may go on
        assert np.isfinite((loss, norm)).all()
        assert (model.parameters != good).any()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_that_diverged_does_not_count(model_of, batch, threads):
    """The next one does what it would have done without."""
    model, other = model_of(), model_of()
    steps(other, batch, 2, threads=threads)
    with Stepper(model, config_of(threads=threads)) as stepper:
        stepper.step(batch, RATE)
        good = model.parameters.copy()
        model.layers[-1].bias[3] = np.nan
        with pytest.raises(TrainingError):
            stepper.step(batch, RATE)
        model.parameters = good
        stepper.step(batch, RATE)
        assert stepper.optimizer.state()["steps"] == 2
    np.testing.assert_array_equal(model.parameters, other.parameters)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinite_norm_with_a_finite_loss_is_not_applied(
    backend, model_of, batch, monkeypatch, threads, bad
):
    model, original = model_of(), LLM.loss_and_gradients
    before = model.parameters.copy()

    def overflow(self, ids, targets, scale, ctx):
        loss = original(self, ids, targets, scale, ctx)
        ctx.gradients.flat[-1] = bad
        return loss

    monkeypatch.setattr(LLM, "loss_and_gradients", overflow)
    with Stepper(model, config_of(threads=threads)) as stepper:
        with pytest.raises(TrainingError, match=r"loss is [\d.]+, the gradient's norm (inf|nan)"):
            stepper.step(batch, RATE)
        assert not stepper.optimizer.m.any()
        assert not stepper.optimizer.v.any()
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_an_infinite_loss_with_a_finite_norm_is_not_applied(
    backend, model_of, batch, monkeypatch, threads, bad
):
    model, original = model_of(), LLM.loss_and_gradients
    before = model.parameters.copy()
    monkeypatch.setattr(LLM, "loss_and_gradients", lambda *given: original(*given) + bad)
    with Stepper(model, config_of(threads=threads)) as stepper:
        with pytest.raises(TrainingError, match=r"loss is (-?inf|nan), the gradient's norm [\d.]+"):
            stepper.step(batch, RATE)
        assert not stepper.optimizer.m.any()
        assert not stepper.optimizer.v.any()
    np.testing.assert_array_equal(model.parameters, before)


@pytest.mark.parametrize("thread", [0, 1])
def test_an_error_in_one_thread_changes_nothing(backend, model_of, batch, monkeypatch, thread):
    model, original = model_of(), LLM.loss_and_gradients
    before = model.parameters.copy()

    def fail(self, *given):
        if (threading.current_thread() is threading.main_thread()) == (thread == 0):
            raise MemoryError("no more")
        return original(self, *given)

    with Stepper(model, config_of(threads=2)) as stepper:
        with monkeypatch.context() as patched:
            patched.setattr(LLM, "loss_and_gradients", fail)
            with pytest.raises(MemoryError, match="no more"):
                stepper.step(batch, RATE)
        np.testing.assert_array_equal(model.parameters, before)
        stepper.step(batch, RATE)
    assert (model.parameters != before).any()
    assert not [t for t in threading.enumerate() if t.name.startswith("rustgpt")]


# The model meanwhile


@pytest.mark.parametrize("texts", [6, 1])
def test_between_two_steps_the_model_may_be_used(backend, model_of, batch, texts):
    model, ids = model_of(), batch[2][:-1]
    with Stepper(model, config_of(threads=2)) as stepper:
        for _ in range(2):
            stepper.step(batch[:texts], RATE)
            twin = copy.deepcopy(model)
            np.testing.assert_array_equal(model.logits(ids), twin.logits(ids))
            made = list(model.stream_ids(ids[:5].tolist(), 6))
            assert made == list(twin.stream_ids(ids[:5].tolist(), 6))


def test_bfloat16_is_for_the_steps_alone(backend, model_of, batch):
    if not has_bfloat16():
        pytest.skip("these kernels have no bfloat16")
    model, exact = model_of(dtype="float32"), model_of(dtype="float32")
    before = model.logits(batch[0])
    with Stepper(model, config_of(threads=2, precision="bfloat16")) as stepper:
        rounded, _ = stepper.step(batch, 0.0)
        np.testing.assert_array_equal(model.logits(batch[0]), before)
    expected, _ = steps(exact, batch, 1)[0]
    assert rounded != expected
    assert rounded == pytest.approx(expected, rel=0.01)
    assert "precision" not in model.config.to_dict()  # what is on disk


def test_one_training_at_a_time(model_of, batch):
    model = model_of()
    with Stepper(model, config_of()) as stepper:
        with (
            pytest.raises(TrainingError, match="is being trained already"),
            Stepper(model, config_of()),
        ):
            pass
        stepper.step(batch, RATE)
    steps(model, batch, 1)  # and afterwards it may be


def test_a_stepper_that_cannot_begin_keeps_nobody_out(model_of, batch, monkeypatch):
    model = model_of()
    with monkeypatch.context() as patched:
        patched.setattr("rustgpt.stepper.single_threaded_blas", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError), Stepper(model, config_of()):
            pass
    assert np.isfinite(steps(model, batch, 1)).all()


def test_after_an_error_the_model_may_be_trained(model_of, batch):
    model = model_of()

    def torn_away():
        with Stepper(model, config_of(threads=2)) as stepper:
            stepper.step(batch, RATE)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        torn_away()
    assert not [t for t in threading.enumerate() if t.name.startswith("rustgpt")]
    assert np.isfinite(steps(model, batch, 1)).all()


def test_blas_has_one_thread_within(model_of, batch):
    def counts():
        return [library["num_threads"] for library in threadpool_info()]

    before = counts()
    with Stepper(model_of(), config_of()) as stepper:
        stepper.step(batch, RATE)
        assert set(counts()) == {1}
    assert counts() == before
