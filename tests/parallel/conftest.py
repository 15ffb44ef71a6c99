"""Owns what the tests of several threads share: a limit on waiting, models, what is expected."""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rustgpt.backend import backend_name, use_backend
from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.llm import LLM
from rustgpt.parallel import pool
from rustgpt.reference.arrays import Barrier

LIMIT = 60.0  # seconds that a test may take
LENGTHS = (9, 3, 14, 1, 7, 11)
GPT2 = {
    "norm": "pre", "activation": "gelu", "attention_bias": True, "tie_embeddings": True,
    "output_bias": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test fail whose threads do not meet, instead of waiting for ever."""
    broken, made = list[Any](), list[Any]()

    class Limited(threading.Barrier):
        def wait(self, timeout: float | None = None) -> int:
            began = time.monotonic()
            try:
                return super().wait(LIMIT)
            except threading.BrokenBarrierError:
                if time.monotonic() - began >= LIMIT:
                    broken.append(self)
                raise

    def barrier(n: int) -> Barrier:
        found = original(n)
        made.append(found)
        return found

    def give_up() -> None:
        broken.extend(made)
        for one in made:
            one.abort()

    original, timer = pool.barrier, threading.Timer(LIMIT, give_up)
    timer.daemon = True
    monkeypatch.setattr(threading, "Barrier", Limited)
    monkeypatch.setattr(pool, "barrier", barrier)
    timer.start()
    yield
    timer.cancel()
    assert not broken, "a thread waited for one that never came"


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """limits(tokens=..., shared_from=..., piece=..., each=...): how a batch is divided."""
    places = {
        "tokens": "data_parallel.TOKENS_AT_LEAST",
        "shared_from": "data_parallel.SHARED_FROM",
        "piece": "batches.TOKENS_A_PIECE",
        "each": "batches.TOKENS_OF_A_THREAD",
    }

    def change(**values: int) -> None:
        for name, value in values.items():
            monkeypatch.setattr(f"rustgpt.parallel.{places[name]}", value)

    return change


@pytest.fixture(params=["a buffer a thread", "one buffer"])
def shared(request: pytest.FixtureRequest, limits: Callable[..., None]) -> bool:
    """Let small models have gradients for each thread, or one buffer for all as large ones do."""
    found = bool(request.param == "one buffer")
    limits(tokens=1, shared_from=0 if found else 10**9)
    return found


@pytest.fixture(params=["norms after", "GPT-2"])
def model_of(
    request: pytest.FixtureRequest, letters: Any, small: Callable[..., Any]
) -> Callable[..., LLM]:
    """model_of(**changes): an untrained model, in float64 unless changed."""
    variant = GPT2 if request.param == "GPT-2" else {}

    def make(**changes: Any) -> LLM:
        settings = {"dtype": "float64", "max_seq_len": 16, "seed": 3}
        return LLM(small(**settings | variant | changes), letters)

    return make


@pytest.fixture
def batch(rng: np.random.Generator) -> list[Any]:
    """Texts of 1 to 14 tokens and one that follows."""
    return [rng.integers(0, 28, length + 1).astype(np.int32) for length in LENGTHS]


@pytest.fixture(scope="session")
def by_name() -> Callable[..., dict[str, Any]]:
    """by_name(model, flat): each parameter's part of an array in the order of the parameters."""

    def split(model: LLM, flat: Any) -> dict[str, Any]:
        named, taken = {}, 0
        for name, value in model.named_parameters().items():
            named[name] = flat[taken : taken + value.size].reshape(value.shape)
            taken += value.size
        assert taken == len(flat)
        return named

    return split


@pytest.fixture(scope="session")
def same_by_name(by_name: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """same_by_name(model, found, expected, tolerance): as shares of each parameter's largest."""

    def check(model: LLM, found: Any, expected: Any, tolerance: float = 1e-9) -> None:
        wanted = by_name(model, expected)
        for name, value in by_name(model, found).items():
            largest = np.abs(wanted[name]).max()
            assert largest > 0, f"nothing is expected of {name}"
            error = np.abs(value - wanted[name]).max() / largest  # NaN fails too
            assert error <= tolerance, f"{name} is off by {error:g} of its largest number"

    return check


@pytest.fixture(scope="session")
def numpy_sum() -> Callable[..., tuple[float, Any]]:
    """numpy_sum(model, rows, scale): the loss and its gradient times scale, in plain NumPy.

    Text by text, in float64, with the kernels in plain NumPy; summed by NumPy.
    """

    def add_up(model: LLM, rows: list[Any], scale: float) -> tuple[float, Any]:
        twin = LLM(dataclasses.replace(model.config, dtype="float64"), model.tokenizer)
        twin.parameters = model.parameters
        passes = [_one_text(twin, row) for row in rows]
        return sum(loss for loss, _ in passes), scale * np.sum([flat for _, flat in passes], axis=0)

    return add_up


def _one_text(model: LLM, row: Any) -> tuple[float, Any]:
    before, gradients = backend_name(), Gradients(model.layers)
    use_backend("reference")
    try:
        gradients.begin()
        ctx = Context(np.array([0, len(row) - 1], np.int32), "float64", gradients=gradients)
        loss = model.loss_and_gradients(row[:-1], row[1:], 1.0, ctx)
        gradients.finish()
    finally:
        use_backend(before)
    return loss, gradients.flat
