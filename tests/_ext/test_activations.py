"""Tests of ReLU, GELU and SwiGLU."""

import math

import numpy as np
import pytest

NAMES = ["relu", "gelu"]  # of one number
ALL = [*NAMES, "swiglu"]  # of a gate and a number, side by side
SHAPES = [(1, 1), (1, 7), (5, 3), (17, 31), (64, 65), (0, 4), (4, 0)]
# Relative error of exp in float32, and what of it reaches a GELU.
EXP_ERROR = {"float32": 3e-7, "float64": 2e-15}
# Of -3, -1, 0, 0.5, 1 and 2, from torch.nn.functional.gelu(x, approximate="tanh") in float64.
GELU = [-0.003637392, -0.158808009, 0.0, 0.34571401, 0.841191991, 1.954597694]
DGELU = [-0.011584167, -0.082964084, 0.5, 0.867369904, 1.082964084, 1.086099257]


# Gates of -3, -1, 0, 0.5 and 2, from torch.nn.functional.silu in float64; with its derivative.
SILU = [-0.142277620, -0.268941421, 0.0, 0.311229666, 1.761594156]
DSILU = [-0.088104105, 0.072329488, 0.5, 0.739961157, 1.090784249]


def gelu(x):
    """The definition, by another way than the kernel's."""
    u = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + np.tanh(u))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("N", "F"), SHAPES)
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, name, N, F):
    agrees(compiled, f"{name}_forward", arguments(f"{name}_forward", dtype, N=N, F=F))
    agrees(compiled, f"{name}_backward", arguments(f"{name}_backward", dtype, N=N, F=F))


def test_swiglus_gradients_are_those_of_finite_differences(kernels, rng, same_gradient):
    x, dout = 3 * rng.standard_normal((5, 14)), rng.standard_normal((5, 7))
    out, dx = np.empty_like(dout), np.full_like(x, np.nan)

    def objective():
        kernels.swiglu_forward(x, out)
        return (out * dout).sum()

    kernels.swiglu_backward(dout, x, dx)
    same_gradient(dx, objective, x)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_finite_differences(kernels, rng, same_gradient, name):
    x = rng.uniform(0.01, 4, (5, 7)) * rng.choice([-1, 1], (5, 7))  # away from ReLU's corner
    dout, out, dx = rng.standard_normal(x.shape), np.empty_like(x), np.full_like(x, np.nan)
    forward, backward = getattr(kernels, f"{name}_forward"), getattr(kernels, f"{name}_backward")

    def objective():
        forward(x, out)
        return (out * dout).sum()

    backward(dout, x, dx)
    same_gradient(dx, objective, x)


def test_relu_written_out(kernels, dtype):
    x = np.array([[-2, -0.5, 0, 0.5, 3]], dtype)
    out, dx = np.empty_like(x), np.empty_like(x)
    kernels.relu_forward(x, out)
    assert out.tolist() == [[0, 0, 0, 0.5, 3]]
    kernels.relu_backward(np.full_like(x, 7), x, dx)
    assert dx.tolist() == [[0, 0, 0, 7, 7]]


def test_gelu_written_out(kernels, dtype):
    x = np.array([[-3, -1, 0, 0.5, 1, 2]], dtype)
    out, dx = np.empty_like(x), np.empty_like(x)
    kernels.gelu_forward(x, out)
    assert out[0].tolist() == pytest.approx(GELU, abs=1e-6)
    kernels.gelu_backward(np.ones_like(x), x, dx)
    assert dx[0].tolist() == pytest.approx(DGELU, abs=1e-6)


def test_swiglu_written_out(kernels, dtype):
    gates, up = [-3, -1, 0, 0.5, 2], [2, -3, 4, 5, 0.5]
    x, out = np.array([gates + up], dtype), np.empty((1, 5), dtype)
    kernels.swiglu_forward(x, out)
    assert out[0].tolist() == pytest.approx(np.multiply(SILU, up).tolist(), abs=1e-6)
    dx = np.empty_like(x)
    kernels.swiglu_backward(np.full_like(out, 2), x, dx)
    assert dx[0, :5].tolist() == pytest.approx((2 * np.multiply(DSILU, up)).tolist(), abs=1e-6)
    assert dx[0, 5:].tolist() == pytest.approx([2 * value for value in SILU], abs=1e-6)


def test_swiglu_is_as_exact_as_its_exponential(kernels, dtype):
    gate = np.linspace(-60, 60, 200_001, dtype=np.float64).astype(dtype)
    x, out = np.stack([gate, np.ones_like(gate)], 1), np.empty((len(gate), 1), dtype)
    kernels.swiglu_forward(x, out)
    wide = gate.astype(np.float64)
    expected = wide / (1 + np.exp(-wide))
    assert (np.abs(out[:, 0] - expected) <= 2 * EXP_ERROR[dtype] * np.abs(expected)).all()


def test_swiglu_far_out_is_the_product_or_zero(kernels, dtype):
    gates = [-1e30, -1e6, -200, 200, 1e6, 1e30]
    x, out = np.array([[*gates, *[2] * 6]], dtype), np.empty((1, 6), dtype)
    kernels.swiglu_forward(x, out)
    assert out[0].tolist() == pytest.approx([0, 0, 0, 400, 2e6, 2e30], rel=1e-6, abs=1e-6)
    dx = np.empty_like(x)
    kernels.swiglu_backward(np.ones_like(out), x, dx)
    assert dx[0, :6].tolist() == pytest.approx([0, 0, 0, 2, 2, 2], rel=1e-6, abs=1e-6)
    assert dx[0, 6:].tolist() == pytest.approx([0, 0, 0, 200, 1e6, 1e30], rel=1e-6, abs=1e-6)


def test_gelu_is_as_exact_as_its_exponential(kernels, dtype):
    x = np.linspace(-12, 12, 200_001, dtype=np.float64).astype(dtype).reshape(1, -1)
    x = x[:, x[0] != 0]
    out = np.empty_like(x)
    kernels.gelu_forward(x, out)
    wide = x.astype(np.float64)
    assert (np.abs(out - gelu(wide)) <= EXP_ERROR[dtype] * np.abs(wide)).all()


def test_gelu_far_out_is_the_identity_or_zero(kernels, dtype):
    x = np.array([[-1e20, -1e6, -100, -30, 30, 100, 1e6, 1e20]], dtype)
    out, dx = np.empty_like(x), np.empty_like(x)
    kernels.gelu_forward(x, out)
    assert out[0].tolist() == [0, 0, 0, 0, *x[0, 4:]]
    kernels.gelu_backward(np.ones_like(x), x, dx)
    assert dx[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_output_may_be_the_input(kernels, arguments, dtype, name):
    given = arguments(f"{name}_forward", dtype)
    getattr(kernels, f"{name}_forward")(given["x"], given["out"])
    getattr(kernels, f"{name}_forward")(given["x"], given["x"])
    np.testing.assert_array_equal(given["x"], given["out"])
    given = arguments(f"{name}_backward", dtype)
    getattr(kernels, f"{name}_backward")(given["dout"], given["x"], given["dx"])
    getattr(kernels, f"{name}_backward")(given["dout"], given["x"], given["dout"])
    np.testing.assert_array_equal(given["dout"], given["dx"])


def test_relu_backward_takes_the_output_for_the_input(kernels, arguments, dtype):
    given = arguments("relu_backward", dtype, N=9, F=11)
    kernels.relu_backward(**given)
    out, dx = np.empty_like(given["x"]), np.empty_like(given["dx"])
    kernels.relu_forward(given["x"], out)
    kernels.relu_backward(given["dout"], out, dx)
    np.testing.assert_array_equal(dx, given["dx"])


@pytest.mark.parametrize("name", NAMES)
def test_nan_comes_through_and_stays_in_its_place(kernels, arguments, dtype, name):
    given = arguments(f"{name}_forward", dtype, N=5, F=7)
    given["x"][2, 3] = np.nan
    getattr(kernels, f"{name}_forward")(**given)
    assert np.argwhere(np.isnan(given["out"])).tolist() == [[2, 3]]
    given = arguments(f"{name}_backward", dtype, N=5, F=7)
    given["x"][...] = 1
    given["dout"][2, 3] = np.nan
    getattr(kernels, f"{name}_backward")(**given)
    assert np.argwhere(np.isnan(given["dx"])).tolist() == [[2, 3]]
