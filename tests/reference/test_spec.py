"""Tests of what a block is made of, and of what the compiled kernels refuse to believe of it."""

import copy
import dataclasses
import itertools
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest

from rustgpt import ModelConfig
from rustgpt.backend import ops
from rustgpt.layers.transformer import TransformerBlock, block_spec
from rustgpt.reference.spec import FEED_FORWARDS, NORMS, PARAMETERS, POSITIONS

from ..kernel_arguments import TWINS, copied, exactly, kernel_of, spec_of
from ..kernel_fixtures import LEVELS, compiled_for

OPTIONS = {
    "norm": ("post", "pre"), "activation": ("relu", "gelu"), "attention_bias": (False, True),
    "attention_projection": (True, False),
}  # fmt: skip
VARIANTS = [
    dict(zip(OPTIONS, choice, strict=True)) for choice in itertools.product(*OPTIONS.values())
]
# What `numbers` says, in order.
NUMBERS = [
    "dim", "n_heads", "n_kv_heads", "hidden_dim", "norm", "positions", "feed_forward", "pre_norm",
    "epsilon1", "epsilon2", "size", *PARAMETERS,
]  # fmt: skip
SIZES = ["dim", "n_heads", "n_kv_heads", "hidden_dim", "size"]
KINDS = {"norm": NORMS, "positions": POSITIONS, "feed_forward": FEED_FORWARDS}
MAY_BE_ABSENT = (
    "attention.qkv_bias", "attention.projection_weight", "attention.projection_bias",
    "feed_forward.bias1", "feed_forward.bias2",
)  # fmt: skip
CALLS = ["block_forward", "block_forward, cache", "block_forward, nothing saved", "block_backward"]
BLOCK_SIZES = {"block_saved_size": {"N": 4}, "block_scratch_size": {"N": 4, "longest": 3}}


# Where the parameters lie


@pytest.fixture(params=VARIANTS, ids=lambda variant: "-".join(map(str, variant.values())))
def config(request):
    return ModelConfig(embedding_dim=12, hidden_dim=10, n_heads=3, **request.param)


def test_shapes_are_those_of_the_blocks_parameters_in_order(config, rng):
    block = TransformerBlock(config, rng)
    expected = [(name, value.shape) for name, value in block.parameters().items()]
    for spec in (block.spec, block_spec(config)):
        assert list(spec.shapes.items()) == expected
        assert spec.size == block.n_parameters == len(block.flat)
        matrices = [shape for _, shape in expected if len(shape) == 2]
        assert spec.multiplied == sum(math.prod(shape) for shape in matrices)


def test_parameters_lie_where_the_offsets_say(config, rng):
    block = TransformerBlock(config, rng)
    spec, begin = block.spec, block.flat.ctypes.data
    found = {
        name: (value.ctypes.data - begin) // value.itemsize
        for name, value in block.parameters().items()
    }
    assert spec.offsets == found
    numbered = np.arange(spec.size)
    for name, view in spec.unpacked(numbered).items():
        assert view.shape == spec.shapes[name]
        assert view.reshape(-1)[0] == found[name]
        assert np.shares_memory(view, numbered)
    block.flat[...] = numbered
    for name, value in block.parameters().items():
        np.testing.assert_array_equal(value, spec.unpacked(numbered)[name])


def test_the_numbers_say_what_the_block_is(config, rng):
    block = TransformerBlock(config, rng)
    said = dict(zip(NUMBERS, block.spec.numbers.tolist(), strict=True))
    assert [said[name] for name in SIZES] == [12, 3, 3, 10, block.n_parameters]
    assert FEED_FORWARDS[int(said["feed_forward"])] == config.activation
    assert said["pre_norm"] == (config.norm == "pre")
    assert [said["epsilon1"], said["epsilon2"]] == [block.norm1.epsilon, block.norm2.epsilon]
    for name in PARAMETERS:
        assert said[name] == block.spec.offsets.get(name, -1)
    assert {name for name in PARAMETERS if said[name] == -1} <= set(MAY_BE_ABSENT)
    assert set(block.parameters()) <= set(PARAMETERS)


def test_a_spec_that_was_used_is_copied_and_pickled_without_what_was_checked(compiled, arguments):
    given = arguments("block_forward", "float64")
    expected = arguments("block_forward", "float64")
    compiled.block_forward(**expected)
    spec = expected["spec"]
    assert spec.checked is not None
    for other in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert other.checked is None
        fields = [field.name for field in dataclasses.fields(spec)]
        assert [getattr(other, f) for f in fields] == [getattr(spec, f) for f in fields]
        given["out"].fill(np.nan)
        compiled.block_forward(**given | {"spec": other})
        np.testing.assert_array_equal(given["out"], expected["out"])


def test_a_spec_serves_every_instruction_set_in_turn(arguments, close):
    given = arguments("block_forward", "float64")
    expected = arguments("block_forward", "float64")["out"]
    TWINS["block_forward"](**given | {"out": expected, "saved": None})
    for level in (*LEVELS, *LEVELS):
        given["out"].fill(np.nan)
        compiled_for(level).block_forward(**given)
        close(given["out"], expected)


# What is not believed


def claiming(said, spec=None):
    """Return a spec that says other numbers than it should, by name."""
    spec = spec_of(2, 3, 7, attention_bias=True) if spec is None else spec
    numbers = spec.numbers.copy()
    for name, value in said.items():
        numbers[NUMBERS.index(name)] = value
    vars(spec)["numbers"] = numbers
    return spec


def wrong_claims():
    """Yield claims that no block can make, whatever the arrays."""
    for name in [*SIZES, *PARAMETERS]:
        for wrong in (-2, -(2**31), 2**61, 1e300, math.nan, math.inf, -math.inf):
            yield {name: wrong}
    for name, kinds in KINDS.items():
        for wrong in (-1, len(kinds), 2**20, 2**32, math.nan, math.inf, -math.inf):
            yield {name: wrong}
    spec = spec_of(2, 3, 7, attention_bias=True)
    for name, shape in spec.shapes.items():
        yield {name: spec.size - math.prod(shape) + 1}  # one number beyond the end
        yield {name: spec.size}
        yield {name: 2**60}
        if name not in MAY_BE_ABSENT:
            yield {name: -1}
    yield from ({"n_heads": n, "n_kv_heads": n} for n in (0, -1, 4, 5, 7, 12))
    yield from ({"n_kv_heads": n} for n in (0, 3, 4, 6))
    yield from ({"dim": n} for n in (-1, 5, 7, 8, 600, 2**31, 2**40))
    yield from ({"hidden_dim": n} for n in (-1, 100, 2**31, 2**40))
    yield from ({"size": n} for n in (-1, 0, spec.size - 1))


def name_of(claim):
    return ",".join(f"{name}={value:g}" for name, value in claim.items())


def wrong_numbers():
    """Yield what `numbers` must not be."""
    right = spec_of(2, 3, 7).numbers
    yield right[:-1].copy()
    yield np.append(right, -1)
    yield np.empty(0)
    yield right[None].copy()
    yield right.astype(np.float32)
    yield right.astype(np.int64)
    yield np.repeat(right, 2)[::2]
    yield right.tolist()
    yield None
    yield "numbers"
    yield np.float64(3)


WRONG_CLAIMS, WRONG_NUMBERS = [*wrong_claims()], [*wrong_numbers()]


@pytest.fixture
def refused(compiled, arguments, guarded_all):
    """refused(call, spec, match): the call is refused, and has written nothing."""

    def check(call, spec, match):
        kernel = kernel_of(call)
        given = guarded_all(arguments(call, "float32", H=2, D=3, F=7, attention_bias=True))
        before, given["spec"] = copied(given), spec
        with pytest.raises((TypeError, ValueError), match=f"^{kernel}: {match}"):
            getattr(compiled, kernel)(**given)
        for name, value in before.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(given[name], value, err_msg=name)

    return check


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("claim", WRONG_CLAIMS, ids=name_of)
def test_a_wrong_claim_is_refused(refused, call, claim):
    refused(call, claiming(claim), "spec must ")


@pytest.mark.parametrize("kernel", BLOCK_SIZES)
@pytest.mark.parametrize("claim", WRONG_CLAIMS, ids=name_of)
def test_a_wrong_claim_has_no_size(compiled, kernel, claim):
    with pytest.raises(ValueError, match=f"^{kernel}: spec must "):
        getattr(compiled, kernel)(claiming(claim), **BLOCK_SIZES[kernel])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("claim", "message"),
    [
        ({"size": 500}, "parameters must have shape"),
        ({"size": 2**60}, "parameters must have shape"),
        ({"dim": 4}, "x must have shape|kv must have"),
        ({"dim": 0}, "x must have shape|kv must have"),
    ],
)
def test_a_claim_that_does_not_fit_the_arrays_is_refused(refused, call, claim, message):
    refused(call, claiming(claim), message)


@pytest.mark.parametrize("call", CALLS)
def test_a_claim_that_needs_more_memory_is_refused(refused, call):
    # More hidden columns than there are, whose weights would lie over other parameters.
    claim = claiming({"hidden_dim": 12, "feed_forward.weight1": 0, "feed_forward.weight2": 0})
    refused(call, claim, "(scratch must hold|saved must have shape)")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("numbers", WRONG_NUMBERS)
def test_wrong_numbers_are_refused(refused, call, numbers):
    spec = spec_of(2, 3, 7)
    vars(spec)["numbers"] = numbers
    refused(call, spec, "spec must ")


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("part", KINDS)
def test_an_unknown_kind_is_refused(refused, call, part):
    refused(call, dataclasses.replace(spec_of(2, 3, 7), **{part: "none"}), "spec must ")


def test_a_claim_is_checked_before_every_first_use(compiled, arguments):
    given = exactly(compiled, "block_forward", arguments("block_forward", "float32"))
    wrong = claiming({"dim": 8})
    for _ in range(2):  # a refused spec is refused again
        with pytest.raises(ValueError, match="block_forward: spec must"):
            compiled.block_forward(**given | {"spec": wrong})
    compiled.block_forward(**given)
    vars(given["spec"])["numbers"] = wrong.numbers  # what was checked holds
    compiled.block_forward(**given)
    assert np.isfinite(given["out"]).all()


class Raises:
    """An object that has nothing to say of a block."""

    @property
    def numbers(self):
        raise AttributeError("numbers")


NO_SPECS = [
    None, 3, 2.5, "block", [1.0] * 23, {"dim": 6}, np.zeros(23), ModelConfig(), spec_of, Raises(),
    SimpleNamespace(dim=6), SimpleNamespace(numbers=[6.0] * 23), type(spec_of(2, 3, 7)),
]  # fmt: skip


@pytest.mark.parametrize("call", [*CALLS, *BLOCK_SIZES])
@pytest.mark.parametrize("spec", NO_SPECS, ids=lambda spec: type(spec).__name__)
def test_what_is_no_spec_is_a_type_error(compiled, switch_backend, arguments, call, spec):
    kernel = kernel_of(call)
    given = BLOCK_SIZES[kernel] if kernel in BLOCK_SIZES else arguments(call, "float32")
    given = {"spec": spec, **{name: value for name, value in given.items() if name != "spec"}}
    switch_backend("cython")
    for function in (getattr(compiled, kernel), getattr(ops, kernel)):
        with pytest.raises(TypeError, match=rf"^{kernel}: .*\bspec\b"):
            function(**given)
