"""Owns what the tests share: backends, types, tolerances, a small model, a tokenizer."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from rustgpt.backend import BACKENDS, backend_name, use_backend
from rustgpt.config import ModelConfig

pytest.register_assert_rewrite(f"{__package__}.kernel_fixtures")

from .kernel_fixtures import (  # noqa: E402, F401
    agrees,
    arguments,
    bfloat16,
    compiled,
    guarded,
    guarded_all,
    kernels,
    reference,
)

# What rounding may cost, as a share of the largest number of an array: about 50 times half a unit
# in the last place. Most kernels need a third of it; long sums and whole blocks have factors.
TOLERANCE = {"float32": 3e-6, "float64": 6e-15}
# Central differences in float64: what may be missing, and as a share of the derivative.
STEP, ABSOLUTE, RELATIVE = 1e-5, 1e-8, 1e-6
GRID = 40  # cases from which on a test is a grid of shapes and options


@pytest.hookimpl(tryfirst=True)  # before pytest looks at the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of grids, which `-m "not grid"` leaves out."""
    names = [item.nodeid.partition("[")[0] for item in items]
    cases = Counter(names)
    for item, name in zip(items, names, strict=True):
        if cases[name] >= GRID:
            item.add_marker(pytest.mark.grid)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each backend in turn, for what runs on `rustgpt.ops`; the one before is put back."""
    before = backend_name()
    use_backend(request.param)
    yield request.param
    use_backend(before)


@pytest.fixture
def switch_backend() -> Iterator[Callable[[str], None]]:
    """`use_backend`, with the backend before put back at the end."""
    before = backend_name()
    yield use_backend
    use_backend(before)


@pytest.fixture(params=("float32", "float64"))
def dtype(request: pytest.FixtureRequest) -> str:
    """Both floating types."""
    return str(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    """The same random numbers for every test."""
    return np.random.default_rng(20240229)


# What is equal


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """close(found, expected, factor=1, scale=None): finite, and equal but for rounding.

    The largest error may be factor * TOLERANCE[dtype] of the largest number that is expected; or
    of `scale`, the size of the terms, where they cancel.
    """

    def check(found: Any, expected: Any, factor: float = 1.0, scale: float | None = None) -> None:
        found, expected = np.asarray(found), np.asarray(expected, np.float64)
        assert found.shape == expected.shape
        assert np.isfinite(found).all(), f"not finite: {found}"
        assert np.isfinite(expected).all(), f"not finite are expected: {expected}"
        largest = np.abs(expected).max(initial=0) if scale is None else scale
        allowed = factor * TOLERANCE[found.dtype.name] * largest
        error = np.abs(found - expected).max(initial=0)
        assert error <= allowed, f"off by {error:g}, allowed are {allowed:g}"

    return check


@pytest.fixture(scope="session")
def same_gradient() -> Callable[..., None]:
    """same_gradient(found, function, x): found is d function() / dx, by central differences."""

    def check(found: Any, function: Callable[[], float], x: Any) -> None:
        assert x.dtype == np.float64
        expected, flat = np.empty(x.size), x.reshape(-1)
        for i in range(x.size):
            kept = flat[i]
            flat[i] = kept + STEP
            above = function()
            flat[i] = kept - STEP
            below = function()
            flat[i] = kept
            expected[i] = (above - below) / (2 * STEP)
        error = np.abs(found.reshape(-1) - expected)
        worst = (error / (ABSOLUTE + RELATIVE * np.abs(expected))).max(initial=0)
        assert worst <= 1, f"{worst:g} of the tolerance: found {found}, expected {expected}"

    return check


@pytest.fixture(scope="session")
def small() -> Callable[..., ModelConfig]:
    """small(**changes): the configuration of a model for tests, of which a text is all it reads."""

    def make(**changes: Any) -> ModelConfig:
        settings = {
            "embedding_dim": 6, "hidden_dim": 10, "n_layers": 2, "n_heads": 2, "max_seq_len": 12,
            "add_bos_token": False,
        }  # fmt: skip
        return ModelConfig(**settings | changes)

    return make


@pytest.fixture
def no_batch_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the few tokens of a test's texts be divided among several threads."""
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)


# A model without the word tokenizer


class Letters:
    """A tokenizer of single characters; "." ends a text."""

    def __init__(self, characters: str = ".abcdefghijklmnopqrstuvwxyz ") -> None:
        self.characters = characters
        self.vocab_size = len(characters)
        self.end_id = 0

    def encode(self, text: str, allow_special: bool = False) -> list[int]:
        return [self.characters.index(c) for c in text if allow_special or c != "."]

    def decode(
        self, ids: Sequence[int], skip_special: bool = True, *, after: Sequence[int] = ()
    ) -> str:
        return "".join(self.characters[i] for i in ids)


@pytest.fixture
def letters() -> Any:
    """A tokenizer of 28 characters."""
    return Letters()


@pytest.fixture(scope="session")
def tokenizer_of() -> Callable[[int], Any]:
    """tokenizer_of(n): what a model needs to know of a vocabulary of n tokens."""

    def make(size: int) -> Any:
        return Letters("".join(map(chr, range(0x4E00, 0x4E00 + size))))

    return make
