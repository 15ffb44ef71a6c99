"""Tests of the passes over a flat parameter buffer."""

import math

import numpy as np
import pytest

SIZES = [0, 1, 2, 7, 64, 1009, 4097]


@pytest.mark.parametrize("P", SIZES)
@pytest.mark.parametrize(
    "kernel", ["sum_of_squares", "clip_by_global_norm", "add_into", "adam_step"]
)
def test_kernel_agrees_with_its_twin(compiled, arguments, agrees, dtype, P, kernel):
    agrees(compiled, kernel, arguments(kernel, dtype, P=P))


def test_sum_of_squares_beyond_float32(kernels, dtype):
    x = np.full(1000, 1e20, dtype)  # one square is 1e40, and float32 ends at 3e38
    assert kernels.sum_of_squares(x) == pytest.approx(1e43, rel=1e-6)
    assert kernels.sum_of_squares(np.array([3, -4], dtype)) == 25
    assert kernels.sum_of_squares(np.array([], dtype)) == 0


def test_a_long_sum_loses_nothing(kernels):
    # In float32 a running sum stops at 2**24, where 1 is less than half a step.
    x = np.ones(2**24 + 100, np.float32)
    assert kernels.sum_of_squares(x) == 2**24 + 100


def test_sum_of_squares_is_not_finite_if_a_number_is_not(kernels, dtype):
    for wrong in (math.nan, math.inf):
        x = np.ones(100, dtype)
        x[61] = wrong
        assert not math.isfinite(kernels.sum_of_squares(x))


def test_clipping_written_out(kernels, dtype):
    gradients = np.array([3, 0, -4], dtype)
    assert kernels.clip_by_global_norm(gradients, 10.0) == 5
    assert gradients.tolist() == [3, 0, -4]
    assert kernels.clip_by_global_norm(gradients, math.inf) == 5
    assert gradients.tolist() == [3, 0, -4]
    assert kernels.clip_by_global_norm(gradients, 2.5) == 5
    assert gradients.tolist() == [1.5, 0, -2]
    assert kernels.clip_by_global_norm(gradients, 2.5) == 2.5
    assert gradients.tolist() == [1.5, 0, -2]


def test_clipping_leaves_zero_and_beyond_float32(kernels, dtype):
    nothing = np.zeros(3, dtype)
    assert kernels.clip_by_global_norm(nothing, 1.0) == 0
    assert nothing.tolist() == [0, 0, 0]
    huge = np.array([3e30, 4e30], dtype)
    assert kernels.clip_by_global_norm(huge, 1.0) == pytest.approx(5e30)
    assert huge.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_norm_must_be_above_zero(compiled, max_norm):
    with pytest.raises(ValueError, match=r"clip_by_global_norm: max_norm must be above 0"):
        compiled.clip_by_global_norm(np.ones(3), max_norm)


def test_add_into_written_out(kernels, dtype):
    out = np.array([1, 2, 3], dtype)
    assert kernels.add_into(np.array([10, 20, 30], dtype), out) is None
    kernels.add_into(np.array([10, 20, 30], dtype), out)
    assert out.tolist() == [21, 42, 63]
    kernels.add_into(np.array([], dtype), out[:0])
    assert out.tolist() == [21, 42, 63]


def paper(parameter, gradients, rate, beta1, beta2, epsilon, decay):
    """Algorithm 1 of Kingma and Ba for one number, with the decay of Loshchilov and Hutter."""
    m = v = 0.0
    for t, gradient in enumerate(gradients, 1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient * gradient
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        step = rate * m_hat / (math.sqrt(v_hat) + epsilon)
        parameter = parameter - step - rate * decay * parameter
    return parameter


def run(kernels, parameters, gradients, rate, beta1, beta2, epsilon, decay):
    m, v = np.zeros_like(parameters), np.zeros_like(parameters)
    for t, gradient in enumerate(gradients, 1):
        kernels.adam_step(
            parameters, gradient, m, v, np.array([0], np.int32), 1.0, rate / (1 - beta1**t),
            beta1, beta2, (1 - beta2**t) ** -0.5, epsilon, rate * decay,
        )  # fmt: skip


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("epsilon", [1e-8, 0.1])
def test_adam_is_the_papers_algorithm(kernels, rng, dtype, close, decay, epsilon):
    settings = (0.03, 0.9, 0.99, epsilon, decay)
    gradients = rng.standard_normal((20, 11)).astype(dtype)
    gradients[:, 3] = 0
    parameters = rng.standard_normal(11).astype(dtype)
    expected = [
        paper(float(p), [float(g) for g in column], *settings)
        for p, column in zip(parameters, gradients.T, strict=True)
    ]
    run(kernels, parameters, gradients, *settings)
    close(parameters, expected)


def test_adam_is_torchs_adamw(kernels, rng, dtype, close):
    torch = pytest.importorskip("torch")
    gradients = rng.standard_normal((20, 101)).astype(dtype)
    parameters = rng.standard_normal(101).astype(dtype)
    theirs = torch.nn.Parameter(torch.tensor(parameters.astype(np.float64)))
    optimizer = torch.optim.AdamW(
        [theirs], lr=0.03, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, foreach=False
    )
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient.astype(np.float64))
        optimizer.step()
    run(kernels, parameters, gradients, 0.03, 0.9, 0.99, 1e-8, 0.1)
    close(parameters, theirs.detach().numpy())


def test_adams_first_step_is_the_rate_whatever_the_gradients_size(kernels, dtype):
    parameters = np.zeros(5, dtype)
    gradients = np.array([1e-3, -1e-3, 1, -1e6, 1e6], dtype)
    run(kernels, parameters, [gradients], 0.01, 0.9, 0.999, 1e-12, 0.0)
    assert parameters.tolist() == pytest.approx([-0.01, 0.01, -0.01, 0.01, -0.01], rel=1e-5)


def test_the_gradient_scale_is_a_factor_on_the_gradient(kernels, arguments, dtype, close):
    scaled, plain = arguments("adam_step", dtype), arguments("adam_step", dtype)
    kernels.adam_step(**scaled | {"gradient_scale": 0.25})
    gradients = plain["gradients"] / 4
    kernels.adam_step(**plain | {"gradient_scale": 1.0, "gradients": gradients})
    for name in ("parameters", "m", "v"):
        close(scaled[name], plain[name])


def test_adam_in_pieces_is_adam_in_one(kernels, arguments, dtype, close):
    whole, pieces = arguments("adam_step", dtype, P=101), arguments("adam_step", dtype, P=101)
    kernels.adam_step(**whole)
    for part in (slice(0, 1), slice(1, 64), slice(64, 101)):
        buffers = {k: v[part] if isinstance(v, np.ndarray) else v for k, v in pieces.items()}
        buffers["edges"] = np.clip(pieces["edges"], part.start, part.stop) - np.int32(part.start)
        kernels.adam_step(**buffers)
    for name in ("parameters", "m", "v"):
        # Not to the bit: a compiler may round the last numbers of a loop, which fill no register,
        # in another order than the rest.
        close(pieces[name], whole[name], 0.1)


def test_decay_applies_between_its_edges(kernels, dtype):
    parameters, zeros = np.full(8, 10, dtype), np.zeros(8, dtype)
    edges = np.array([1, 3, 3, 4, 6], np.int32)  # on at 1, off at 3, on at 3, off at 4, on at 6
    kernels.adam_step(
        parameters, zeros, zeros.copy(), zeros.copy(), edges, 1.0, 0.1, 0.9, 0.9, 1.0, 1.0, 0.5
    )
    assert parameters.tolist() == [10, 5, 5, 5, 10, 10, 5, 5]
