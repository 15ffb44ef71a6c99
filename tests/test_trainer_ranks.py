"""Owns the tests of a training by several processes: the same result as by one."""

import json
from pathlib import Path

import numpy as np
import pytest

from .mpi_runs import needs_mpi, run_alone, run_ranks

pytestmark = [needs_mpi, pytest.mark.slow]
SCRIPT = str(Path(__file__).with_name("trainer_ranks_script.py"))
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def trained(place, ranks=1, dtype="float64", **settings):
    """Return what a training by so many processes came to."""
    args = SCRIPT, "out.npz", json.dumps({"dtype": dtype, **settings})
    if ranks == 1:
        run_alone(*args, cwd=place)
    else:
        assert run_ranks(ranks, *args, cwd=place) == (0, "", "")
    with np.load(place / "out.npz") as file:
        return dict(file)


def check_same(found, expected, tolerance):
    assert found.keys() == expected.keys()
    steps = len(found["losses"])
    np.testing.assert_allclose(found["losses"], expected["losses"][-steps:], rtol=tolerance)
    np.testing.assert_allclose(found["evaluations"], expected["evaluations"], rtol=tolerance)
    for name in expected.keys() - {"losses", "evaluations", "held"}:
        value, other = expected[name], found[name]
        if name.endswith("qkv_bias"):  # the keys' part has no gradient but rounding
            value, other = (np.delete(one.reshape(3, -1), 1, 0) for one in (value, other))
        distance = np.linalg.norm(other - value) / np.linalg.norm(value)
        assert distance <= tolerance, (name, distance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process comes to, by type."""
    return {one: trained(tmp_path_factory.mktemp(one), dtype=one) for one in TOLERANCE}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_learn_what_one_process_learns(tmp_path, alone, ranks, dtype):
    found = trained(tmp_path, ranks, dtype)
    check_same(found, alone[dtype], TOLERANCE[dtype])
    assert len(found["losses"]) == 50
    total = alone[dtype]["held"].sum()
    assert found["held"].sum() == total  # moments, each on one rank
    assert found["held"].max() <= -(-total // ranks)


def test_the_same_ranks_give_the_same_bits(tmp_path):
    first, second = (trained(tmp_path, 3, "float32") for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("momentum", [False, True])
def test_a_training_goes_on_with_other_ranks(tmp_path, alone, momentum):
    own = {"folder": str(tmp_path / "model"), "momentum": momentum}
    expected = trained(tmp_path, momentum=True) if momentum else alone["float64"]
    trained(tmp_path, 2, stop=20, **own)
    trained(tmp_path, 3, stop=35, resume=True, **own)
    found = trained(tmp_path, 1, resume=True, **own)
    assert len(found["losses"]) == 15
    check_same({**found, "held": None}, {**expected, "held": None}, TOLERANCE["float64"])
