"""Owns the contract of the layers: what holds for each of them, whatever it computes."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.gradient_check import gradcheck
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.memory import Workspace

Check = Callable[..., None]

LENGTHS = (3, 1, 4)  # rows of each text
OTHER_LENGTHS = (2, 0, 4)  # of a second pass
# The slots of the three texts in a cache, and how many rows of which text each pass brings.
SLOTS = (4, 0, 2)
PASSES: tuple[dict[int, int], ...] = ({2: 1, 0: 0}, {0: 2, 2: 2}, {1: 1}, {2: 1, 0: 1})


def offsets_of(lengths: Sequence[int]) -> Any:
    """Return where texts of so many rows begin and end."""
    return np.cumsum([0, *lengths], dtype=np.int32)


def begin(layer: Any, lengths: Sequence[int], **rest: Any) -> Context:
    """Return a new pass through a layer."""
    return Context(offsets_of(lengths), layer.dtype, **rest)


def forward(layer: Any, x: Any, ctx: Context) -> Any:
    """Return a copy of the output; the input must stay as it was."""
    kept = x.copy()
    out = ctx.forward([layer], x).copy()
    np.testing.assert_array_equal(x, kept, err_msg="forward changed its input")
    return out


def backward(layer: Any, dout: Any, ctx: Context) -> Any:
    """Return a copy of the input's gradient; the output's must stay as it was."""
    kept = dout.copy()
    dx = ctx.backward([layer], dout).copy()
    np.testing.assert_array_equal(dout, kept, err_msg="backward changed its input")
    return dx


def named(layers: Sequence[Any], gradients: Gradients) -> dict[str, Any]:
    """Return copies of the gradients of all parameters, which must have been written."""
    parameters = {
        f"{i}.{name}": value
        for i, layer in enumerate(layers)
        for name, value in layer.parameters().items()
    }
    return {name: gradients.claim(value)[0].copy() for name, value in parameters.items()}


@pytest.fixture(scope="session")
def context() -> Callable[..., Context]:
    """context(layer, *lengths, gradients=..., ...): a pass with texts of so many rows."""

    def make(layer: Any, *lengths: int, **rest: Any) -> Context:
        return begin(layer, lengths, **rest)

    return make


@pytest.fixture
def scrambled(rng: np.random.Generator) -> Callable[[Any], Any]:
    """scrambled(layer): the layer, with random numbers for all of its parameters."""

    def scramble(layer: Any) -> Any:
        for value in layer.parameters().values():
            value[...] = rng.standard_normal(value.shape)
        return layer

    return scramble


@pytest.fixture(scope="session")
def right_gradients() -> Check:
    """right_gradients(layer, x, names): gradcheck passes, and has looked at these gradients."""

    def check(layer: Any, x: Any, names: Sequence[str]) -> None:
        report = gradcheck(layer, x)
        assert report, report
        assert list(report.errors) == [*names, "two passes at once", "with a cache"]

    return check


# The parts of the contract. `owners` are layers whose parameters the layer uses too.


@pytest.fixture
def writes_gradients(rng: np.random.Generator, close: Check) -> Check:
    """writes_gradients(layer, x, *owners): a step's first backward overwrites, later ones add."""

    def check(layer: Any, x: Any, *owners: Any) -> None:
        layers = [*owners, layer]
        gradients = Gradients(layers)
        inputs = [x, x[::-1].copy()]
        shape = forward(layer, x, begin(layer, LENGTHS)).shape
        douts = [rng.standard_normal(shape).astype(layer.dtype) for _ in inputs]

        def step(*passes: int) -> tuple[dict[str, Any], list[Any]]:
            gradients.flat.fill(np.nan)
            gradients.begin()
            found = []
            for i in passes:
                ctx = begin(layer, LENGTHS, gradients=gradients)
                forward(layer, inputs[i], ctx)
                found.append(backward(layer, douts[i], ctx))
            return named(layers, gradients), found

        (first, (dx,)), (second, (other_dx,)) = step(0), step(1)
        both, dxs = step(0, 1)
        np.testing.assert_array_equal(dxs, [dx, other_dx])
        assert first
        for name, value in both.items():
            assert first[name].any(), f"the gradient of {name} is zero"
            assert second[name].any(), f"the gradient of {name} is zero"
            scale = max(np.abs(first[name]).max(), np.abs(second[name]).max())
            close(value, first[name] + second[name], 10, scale)

    return check


@pytest.fixture
def interleaves(rng: np.random.Generator) -> Check:
    """interleaves(layer, x, *owners): two passes at once give the bits of one after the other."""

    def check(layer: Any, x: Any, *owners: Any) -> None:
        layers = [*owners, layer]
        inputs = {0: (x, LENGTHS), 1: (x[::-1][: sum(OTHER_LENGTHS)].copy(), OTHER_LENGTHS)}
        outs = {i: forward(layer, x, begin(layer, lengths)) for i, (x, lengths) in inputs.items()}
        douts = {i: rng.standard_normal(out.shape).astype(layer.dtype) for i, out in outs.items()}

        def run(order: str) -> dict[int, Any]:
            """Make both passes; "0 1 0 1" is forward of both, then backward of both."""
            gradients = {i: Gradients(layers) for i in inputs}
            for one in gradients.values():
                one.begin()
            ctxs = {i: begin(layer, inputs[i][1], gradients=gradients[i]) for i in inputs}
            returned: dict[int, Any] = {}
            dxs: dict[int, Any] = {}
            for i in map(int, order.split()):
                if i in returned:
                    np.testing.assert_array_equal(returned[i], outs[i], f"output of {order}")
                    dxs[i] = backward(layer, douts[i], ctxs[i])
                else:
                    returned[i] = ctxs[i].forward([layer], inputs[i][0])
            return {i: (dxs[i], named(layers, gradients[i])) for i in inputs}

        expected = run("0 0 1 1")
        for order in ("0 1 0 1", "0 1 1 0"):
            for i, (dx, gradients) in run(order).items():
                np.testing.assert_array_equal(dx, expected[i][0], f"dx of {order}")
                for name, value in gradients.items():
                    np.testing.assert_array_equal(value, expected[i][1][name], f"{name}, {order}")

    return check


def held(workspace: Workspace) -> list[Any]:
    """Return the arrays of a workspace, whatever part of them is in use; the temporary first."""
    stores = (workspace.temporary, workspace.activations, *workspace.alternating)
    return [flat for store in stores for flat in store._flat.values()]


@pytest.fixture
def reuses_memory() -> Check:
    """reuses_memory(layer, x, *owners): after the largest batch nothing is allocated.

    What the memory holds from the pass before does not matter; nor what temporary memory holds
    when the layer has returned.
    """

    def check(layer: Any, x: Any, *owners: Any) -> None:
        def run(n: int, workspace: Workspace, training: bool, left: float) -> list[Any]:
            """Return the output, and copies of it and of all gradients."""
            gradients = Gradients([*owners, layer]) if training else None
            ctx = begin(layer, [n], gradients=gradients, workspace=workspace)
            out = ctx.forward([layer], x[:n])
            found = [out, out.copy()]
            if gradients is not None:
                for flat in workspace.temporary._flat.values():
                    flat.fill(left)
                found.append(ctx.backward([layer], np.ones_like(out)).copy())
                gradients.finish()
                found.append(gradients.flat)
            return found

        for training in (True, False):
            workspace = Workspace(layer.dtype)
            largest = run(len(x), workspace, training, 0.0)[0]
            before = held(workspace)
            assert before
            for n in (1, len(x) - 1, len(x), 2):
                for flat in before:
                    flat.fill(np.nan)
                out, *found = run(n, workspace, training, np.nan)
                assert np.shares_memory(out, largest)
                expected = run(n, Workspace(layer.dtype), training, 1.0)[1:]
                for value, wanted in zip(found, expected, strict=True):
                    np.testing.assert_array_equal(value, wanted)
            assert [flat.ctypes.data for flat in held(workspace)] == [
                flat.ctypes.data for flat in before
            ]

    return check


@pytest.fixture(scope="session")
def decodes(close: Check) -> Check:
    """decodes(layer, x): texts that go on in a cache, a few rows at a time, are as the whole."""

    def check(layer: Any, x: Any) -> None:
        offsets = offsets_of(LENGTHS)
        whole = forward(layer, x, begin(layer, LENGTHS))
        found = np.full_like(whole, np.nan)
        cache = Cache(max(LENGTHS) + 1, slots=max(SLOTS) + 1)
        for texts in PASSES:
            slots = np.array([SLOTS[text] for text in texts], np.int32)
            firsts = [offsets[text] + cache.lengths[SLOTS[text]] for text in texts]
            rows = np.concatenate(
                [np.arange(a, a + n) for a, n in zip(firsts, texts.values(), strict=True)]
            )
            ctx = begin(layer, [*texts.values()], cache=cache, slots=slots)
            found[rows] = forward(layer, x[rows], ctx)
            cache.lengths[slots] += [*texts.values()]
        assert cache.lengths[[*SLOTS]].tolist() == [*LENGTHS]
        close(found, whole, 10)

    return check


@pytest.fixture(scope="session")
def saves_nothing(close: Check) -> Check:
    """saves_nothing(layer, x, *owners): without gradients, there is nothing to go back with."""

    def check(layer: Any, x: Any, *owners: Any) -> None:
        ctx = begin(layer, LENGTHS)
        out = forward(layer, x, ctx)
        for _, inner in layer.walk():
            with pytest.raises(ConfigError, match="nobody saved last"):
                ctx.saved(inner)
        trained = begin(layer, LENGTHS, gradients=Gradients([*owners, layer]))
        close(out, forward(layer, x, trained))

    return check


class Recorder:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.outputs: list[tuple[Any, Any]] = []
        self.gradients: list[tuple[Any, Any]] = []

    def forward(self, layer: Any, out: Any) -> None:
        self.outputs.append((layer, out))

    def backward(self, layer: Any, dx: Any) -> None:
        self.gradients.append((layer, dx))


@pytest.fixture
def recorder() -> Recorder:
    """An observer with `outputs` and `gradients`: of each layer, in the order of the calls."""
    return Recorder()


@pytest.fixture(scope="session")
def tells_the_observer(close: Check) -> Check:
    """tells_the_observer(layer, x, *owners): it is told of the layer after its inner layers."""

    def check(layer: Any, x: Any, *owners: Any) -> None:
        def run(observer: Recorder | None) -> tuple[Any, Any]:
            gradients = Gradients([*owners, layer])
            ctx = begin(layer, LENGTHS, gradients=gradients, observer=observer)
            out = ctx.forward([layer], x)
            return out, ctx.backward([layer], np.cos(out))

        plain, recorder = run(None), Recorder()
        observed = run(recorder)
        inside = {id(inner) for _, inner in layer.walk()}
        for told, result in zip((recorder.outputs, recorder.gradients), observed, strict=True):
            assert len(told) == len(inside)
            assert {id(inner) for inner, _ in told} == inside
            assert told[-1][0] is layer
            assert told[-1][1] is result
        for value, wanted in zip(observed, plain, strict=True):
            close(value, wanted, 10)

    return check


@pytest.fixture(scope="session")
def refuses_attributes() -> Check:
    """refuses_attributes(layer): once built, it takes no new attributes."""

    def check(layer: Any) -> None:
        for _, inner in layer.walk():
            with pytest.raises(ConfigError, match=f"{type(inner).__name__}.seen cannot be set"):
                inner.seen = 1
            assert not hasattr(inner, "seen")

    return check


@pytest.fixture
def contract(
    writes_gradients: Check, interleaves: Check, reuses_memory: Check, decodes: Check,
    saves_nothing: Check, tells_the_observer: Check, refuses_attributes: Check,
) -> Check:  # fmt: skip
    """contract(layer, x, *owners): all of the above."""

    def check(layer: Any, x: Any, *owners: Any) -> None:
        writes_gradients(layer, x, *owners)
        interleaves(layer, x, *owners)
        reuses_memory(layer, x, *owners)
        decodes(layer, x)
        saves_nothing(layer, x, *owners)
        tells_the_observer(layer, x, *owners)
        refuses_attributes(layer)

    return check
