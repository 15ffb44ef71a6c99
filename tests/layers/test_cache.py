"""Tests of what decoding remembers of texts."""

import copy
import pickle

import numpy as np
import pytest

from rustgpt.errors import ConfigError
from rustgpt.layers.cache import Cache
from rustgpt.llm import LLM

FLOAT64 = np.dtype(np.float64)


def pickled(cache):
    """Return a copy that went through bytes."""
    return pickle.loads(pickle.dumps(cache))


def test_a_new_cache_has_seen_nothing():
    cache = Cache(9, slots=3)
    assert (cache.capacity, cache.slots) == (9, 3)
    assert cache.lengths.tolist() == [0, 0, 0]
    assert cache.lengths.dtype == np.int32
    assert Cache(9).slots == 1


def test_a_cache_keeps_rows_for_each_place_and_name(dtype):
    cache = Cache(9, slots=2)
    kv = cache.rows("layers.1", "kv", 4, np.dtype(dtype))
    assert kv.shape == (2, 9, 4)
    assert kv.dtype == dtype
    for place, name in (("layers.2", "kv"), ("layers.1", "x")):
        assert not np.shares_memory(kv, cache.rows(place, name, 4, np.dtype(dtype)))
    assert cache.rows("layers.1", "kv", 4, np.dtype(dtype)) is kv


@pytest.mark.parametrize("wrong", [0, -1, 4.5, True, "4", 2**31])
@pytest.mark.parametrize("name", ["capacity", "slots"])
def test_a_cache_of_no_size_is_refused(name, wrong):
    with pytest.raises(ConfigError, match=f"{name} must be a whole number from 1 to 2147483647"):
        Cache(**{"capacity": 4} | {name: wrong})


def test_a_cache_with_texts_that_a_layer_has_not_seen_belongs_to_another_model():
    cache = Cache(9, slots=2)
    cache.rows("layers.1", "kv", 4, FLOAT64)
    cache.lengths[1] = 5
    cache.rows("layers.1", "kv", 4, FLOAT64)
    with pytest.raises(ConfigError, match=r"5 tokens.*no kv of layers\.2"):
        cache.rows("layers.2", "kv", 4, FLOAT64)


def test_a_model_refuses_the_cache_of_a_smaller_one(backend, small, letters):
    small_one, large_one = (LLM(small(n_layers=n), letters) for n in (1, 2))
    cache = Cache(9)
    small_one.decode([1, 2, 3], cache)
    with pytest.raises(ConfigError, match="another model"):
        large_one.decode([4], cache)
    assert cache.lengths.tolist() == [3]


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickled])
def test_a_copy_goes_on_by_itself(backend, small, letters, copied):
    model = LLM(small(), letters)
    cache = Cache(9)
    model.decode([1, 2, 3], cache)
    twin = copied(cache)
    first, second = model.decode([4], cache), model.decode([5], cache)
    assert (cache.lengths.tolist(), twin.lengths.tolist()) == ([5], [3])
    found = copy.deepcopy(model).decode([4], twin)  # a copy of the model goes on with it too
    np.testing.assert_array_equal(found, first)
    np.testing.assert_array_equal(model.decode([5], twin), second)
