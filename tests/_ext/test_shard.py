"""Tests of kernels that several threads call for one batch, each with a shard of it.

What they make together is held against the twins, which run the whole batch in one thread.
"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from rustgpt._ext.barrier import Barrier

from rustgpt.reference.arrays import Shard

from ..kernel_arguments import copied, exactly, widened
from ..kernel_specs import LLAMA

pytestmark = pytest.mark.grid  # every case of what may go wrong, or be divided

LENGTHS = (3, 0, 5, 4)
EDGES = {"texts": [0, 8, 12], "heads": [0, 5, 12], "one has all": [0, 12, 12]}
SHARDED = [
    "block_forward", "block_backward", "linear_cross_entropy", "dropout", "embedding_forward",
    "embedding_backward",
]  # fmt: skip
NO_SHARD = r"shard must be a rustgpt\.reference\.\w+\.Shard"
LIMIT = 60.0  # seconds after which a test's threads wait no longer
LONG_SUMS = 30.0  # what rounding costs more in sums of 70,001 exponentials
BFLOAT16 = 60.0  # and where a last digit decides what is rounded to a bfloat16


class Broken:
    """A barrier that fails."""

    def wait(self):
        return 1 / 0


@pytest.fixture
def barrier():
    """barrier(n, compiled): where n threads wait, but not for ever if one of them never comes."""
    made = []

    def make(n, compiled=True):
        made.append(Barrier(n) if compiled else threading.Barrier(n))
        return made[-1]

    timer = threading.Timer(LIMIT, lambda: [found.abort() for found in made])
    timer.start()
    yield make
    timer.cancel()


@pytest.fixture
def shards_of(barrier):
    """shards_of(edges, heads=False, compiled=True): one shard a thread, with a common barrier."""

    def make(edges, heads=False, compiled=True):
        common, edges = barrier(len(edges) - 1, compiled), np.array(edges, np.int32)
        return [Shard(i, edges, heads, common) for i in range(len(edges) - 1)]

    return make


@pytest.fixture(params=[(edges, kind) for edges in EDGES for kind in ("compiled", "Python's")])
def shards(request, shards_of):
    """Two threads' shards of 12 rows, with each kind of barrier."""
    edges, kind = request.param
    return shards_of(EDGES[edges], edges == "heads", kind == "compiled")


def together(kernel, shards, given):
    """Let as many threads as there are shards call the kernel with the same arrays.

    Returns what it returned to each.
    """
    with ThreadPoolExecutor(len(shards)) as pool:
        return list(pool.map(lambda shard: kernel(**given, shard=shard), shards))


def whole(reference, kernel, given):
    """Return the arguments in float64 after the twin has run the whole batch."""
    wide = widened(exactly(reference, kernel, given))
    getattr(reference, kernel)(**wide)
    return wide


def sharded(compiled, kernel, given, shards):
    """Return the arguments with as much scratch as the threads ask for."""
    sized = exactly(compiled, kernel, given | {"shard": shards[0]})
    return {name: value for name, value in sized.items() if name != "shard"}


# A block


@pytest.fixture
def through_block(reference, guarded_all, close):
    """through_block(kernels, given, shards, ...): threads do of a block what the twin does."""

    def check(kernels, given, shards, accumulate, factor=1.0, **options):
        rng, dtype, (N, C) = np.random.default_rng(1), given["x"].dtype, given["x"].shape
        grads = {"dout": rng.standard_normal((N, C)).astype(dtype)}
        grads["dparameters"] = rng.standard_normal(given["spec"].size).astype(dtype)
        mine = guarded_all(sharded(kernels, "block_forward", given, shards)) | options
        wide = whole(reference, "block_forward", given | options)
        together(kernels.block_forward, shards, mine)
        close(mine.pop("out"), wide.pop("out"), factor)
        mine = guarded_all(sharded(kernels, "block_backward", mine | grads, shards))
        mine["dx"] = mine["dout"]  # each thread writes over its own rows alone
        wide |= widened(grads) | {"dx": np.full((N, C), np.nan)}
        together(kernels.block_backward, shards, mine | {"accumulate": accumulate})
        reference.block_backward(**wide, accumulate=accumulate)
        close(mine["dx"], wide["dx"], factor)
        close(mine["dparameters"], wide["dparameters"], factor)

    return check


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("options", [{"norm": "pre", "activation": "gelu"}, {"norm": "post"}])
@pytest.mark.parametrize("projection", [True, False])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_threads_do_of_a_block_what_one_does(
    compiled, arguments, through_block, dtype, shards, accumulate, options, projection, rate
):
    given = arguments(
        "block_forward", dtype, lengths=LENGTHS, F=13, attention_projection=projection,
        attention_bias=projection, rate=rate, **options,
    )  # fmt: skip
    through_block(compiled, given, shards, accumulate)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize(("H", "K"), [(2, 1), (4, 2), (6, 3), (3, 3)])  # for two threads
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_threads_do_of_a_llama_what_one_does(
    compiled, arguments, through_block, dtype, shards, accumulate, H, K, norm, rate
):
    options = LLAMA | {"norm": norm, "n_kv_heads": K}
    given = arguments("block_forward", dtype, lengths=LENGTHS, H=H, D=2, F=13, rate=rate, **options)
    through_block(compiled, given, shards, accumulate)


@pytest.mark.parametrize("kind", EDGES)
def test_threads_round_a_llama_to_bfloat16_as_one_does(
    bfloat16, arguments, through_block, shards_of, kind
):
    options = {"lengths": LENGTHS, "H": 4, "F": 13} | LLAMA | {"n_kv_heads": 2}
    given = arguments("block_forward", "float32", **options)
    shards = shards_of(EDGES[kind], kind == "heads")
    through_block(bfloat16, given, shards, False, BFLOAT16, bfloat16=True)


@pytest.mark.parametrize("options", [{"norm": "pre"}, {"norm": "post"}, LLAMA])
@pytest.mark.parametrize(
    ("edges", "heads"), [([0, 202], False), ([0, 101, 202], True), ([0, 3, 202], False)]
)
def test_long_texts_need_no_more_scratch_than_the_threads_ask_for(
    compiled, arguments, through_block, shards_of, dtype, options, edges, heads
):
    # One text has more rows than attention takes at a time.
    given = arguments("block_forward", dtype, lengths=(3, 0, 192, 7), F=13, **options)
    through_block(compiled, given, shards_of(edges, heads), False)


@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("kind", EDGES)
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_threads_round_a_block_to_bfloat16_as_one_does(
    bfloat16, arguments, through_block, shards_of, norm, kind, rate
):
    given = arguments("block_forward", "float32", lengths=LENGTHS, F=13, norm=norm, rate=rate)
    shards = shards_of(EDGES[kind], kind == "heads")
    through_block(bfloat16, given, shards, False, BFLOAT16, bfloat16=True)


# The loss


def check_loss(compiled, reference, guarded_all, close, given, shards, factor=1.0):
    """Check that threads find the twin's losses and gradients, each the sum of its own rows."""
    mine = guarded_all(given)
    wide = whole(reference, "linear_cross_entropy", given)
    found = together(compiled.linear_cross_entropy, shards, mine)
    for shard, loss in zip(shards, found, strict=True):
        expected = wide["losses"][shard.rows].sum()
        close(np.asarray(loss, mine["x"].dtype), expected, factor)
    for name in ("losses", "dx", "dweight", "dbias"):
        if given[name] is not None:
            close(mine[name], wide[name], factor)


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 6, 24])  # of logits, for both threads
@pytest.mark.parametrize("transposed", [False, True])
def test_threads_find_the_loss_that_one_finds(
    compiled, reference, arguments, guarded_all, close, dtype, shards, accumulate, rows, transposed
):
    given = arguments(
        "linear_cross_entropy", dtype, N=12, C=5, V=7, R=rows, transposed=transposed,
        accumulate=accumulate,
    )  # fmt: skip
    check_loss(compiled, reference, guarded_all, close, given, shards)


@pytest.mark.parametrize("rows", [3, 5])  # which the two threads cannot halve
@pytest.mark.parametrize("edges", [[0, 6, 12], [0, 12, 12], [0, 0, 12]])
def test_logits_that_cannot_be_halved(
    compiled, reference, arguments, guarded_all, close, shards_of, dtype, rows, edges
):
    sizes = {"N": 12, "C": 5, "V": 7, "R": rows, "accumulate": False}
    given = arguments("linear_cross_entropy", dtype, **sizes)
    check_loss(compiled, reference, guarded_all, close, given, shards_of(edges))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_threads_divide_weights_that_no_cache_holds(
    compiled, reference, arguments, guarded_all, close, shards_of, dtype, transposed, n
):
    sizes = {"N": 7, "C": 61, "V": 70_001, "R": 7, "transposed": transposed}
    given = arguments("linear_cross_entropy", dtype, **sizes)
    shards = shards_of([7 * i // n for i in range(n + 1)])
    check_loss(compiled, reference, guarded_all, close, given, shards, LONG_SUMS)


def test_losses_alone_can_be_divided(
    compiled, reference, arguments, guarded_all, close, dtype, shards
):
    sizes = {"N": 12, "C": 5, "V": 7, "R": 4, "gradient": False}
    given = arguments("linear_cross_entropy", dtype, **sizes)
    check_loss(compiled, reference, guarded_all, close, given, shards)


def test_rows_are_divided_whichever_thread_made_them(
    compiled, reference, arguments, close, shards_of, dtype
):
    given = arguments("linear_cross_entropy", dtype, N=12, C=5, V=7, R=12)
    wide = whole(reference, "linear_cross_entropy", given)
    x, given["x"] = given["x"], np.full_like(given["x"], np.nan)

    def call(shard):
        time.sleep(0.05 * shard.index)  # the first comes before the second has made its rows
        given["x"][shard.rows] = x[shard.rows]
        return compiled.linear_cross_entropy(**given, shard=shard)

    with ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(call, shards_of([0, 2, 12])))
    close(np.asarray(sum(losses), dtype), wide["losses"].sum())
    for name in ("losses", "dx", "dweight", "dbias"):
        close(given[name], wide[name])


# Dropout


def test_a_thread_drops_of_its_own_rows_alone(compiled, reference, arguments, shards_of):
    given = arguments("dropout", "float64", N=12)
    wide = whole(reference, "dropout", given)
    compiled.dropout(**given, shard=shards_of([0, 3, 7, 12])[1])
    np.testing.assert_array_equal(given["out"][3:7], wide["out"][3:7])
    assert np.isnan(given["out"][[0, 1, 2, 7, 8, 9, 10, 11]]).all()


# Embeddings


def test_a_thread_looks_up_its_own_rows_alone(compiled, reference, arguments, shards_of):
    given = arguments("embedding_forward", "float64", N=12)
    wide = whole(reference, "embedding_forward", given)
    compiled.embedding_forward(**given, shard=shards_of([0, 3, 7, 12])[1])
    np.testing.assert_array_equal(given["out"][3:7], wide["out"][3:7])
    assert np.isnan(given["out"][[0, 1, 2, 7, 8, 9, 10, 11]]).all()


@pytest.mark.parametrize(
    ("kernel", "outputs"),
    [("embedding_forward", ["out"]), ("embedding_backward", ["dtokens", "dplaces"])],
)
def test_threads_divide_the_embeddings(
    compiled, reference, arguments, guarded_all, close, dtype, shards, kernel, outputs
):
    given = arguments(kernel, dtype, N=12, C=7)
    mine, alone, wide = guarded_all(given), copied(given), whole(reference, kernel, given)
    together(getattr(compiled, kernel), shards, mine)
    getattr(compiled, kernel)(**alone)
    for name in outputs:
        close(mine[name], wide[name])
        np.testing.assert_array_equal(mine[name], alone[name])  # in the same order


# What is refused


@pytest.mark.parametrize("kernel", SHARDED)
def test_the_twins_refuse_a_shard(reference, arguments, shards_of, kernel):
    given = arguments(kernel, "float64", **{"lengths": (4,)} if "block" in kernel else {"N": 4})
    before = copied(given)
    with pytest.raises(ValueError, match="shard must be None"):
        getattr(reference, kernel)(**given, shard=shards_of([0, 4])[0])
    for name, value in before.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(given[name], value)


ALONE = Barrier(1)
FOUR = np.array([0, 4], np.int32)
WRONG = [
    (3, NO_SHARD),
    ("all", NO_SHARD),
    (Shard(0, [0, 4], False, ALONE), NO_SHARD),
    (Shard("first", FOUR, False, ALONE), NO_SHARD),
    (Shard(0, np.array([0, 4], np.int64), False, ALONE), NO_SHARD),
    (Shard(0, np.array([0, 3], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
    (Shard(0, np.array([1, 4], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
    (Shard(0, np.array([0], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
    (Shard(0, np.array([], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
    (Shard(1, FOUR, False, ALONE), "an index below"),
    (Shard(-1, FOUR, False, ALONE), "an index below"),
    (Shard(0, np.array([0, 5, 4], np.int32), False, ALONE), r"rise, but edges\[2\] is less"),
    (Shard(0, np.array([0, -1, 4], np.int32), False, ALONE), r"rise, but edges\[1\] is less"),
    (
        Shard(0, np.frombuffer(b"\0" + FOUR.tobytes(), np.int32, 2, 1), False, ALONE),
        r"shard\.edges must be aligned",
    ),
]


@pytest.mark.parametrize(("shard", "message"), WRONG)
@pytest.mark.parametrize("kernel", SHARDED)
def test_a_wrong_shard_is_refused(compiled, arguments, kernel, shard, message):
    sizes = {"N": 4} if kernel == "linear_cross_entropy" else {}
    with pytest.raises((TypeError, ValueError), match=f"{kernel}: .*{message}"):
        getattr(compiled, kernel)(**arguments(kernel, "float32", **sizes), shard=shard)


@pytest.mark.parametrize("kernel", ["block_forward", "block_backward"])
def test_a_text_is_divided_only_with_the_heads(compiled, arguments, shards_of, kernel):
    given = arguments(kernel, "float32", lengths=(3, 1))
    with pytest.raises(ValueError, match=f"{kernel}: shard must have edges between texts"):
        getattr(compiled, kernel)(**given, shard=shards_of([0, 2, 4])[0])


def test_a_cache_and_what_is_not_saved_are_not_divided(compiled, arguments, shards_of):
    shard = shards_of([0, 2, 3])[0]
    given = arguments("block_forward, cache", "float32") | {"shard": shard}
    with pytest.raises(ValueError, match="block_forward: shard must be None where there is a c"):
        compiled.block_forward(**given)
    given = arguments("block_forward", "float32", lengths=(2, 1), save=False) | {"shard": shard}
    with pytest.raises(ValueError, match="block_forward: saved must be given where there is a sha"):
        compiled.block_forward(**given)


def test_an_error_at_a_barrier_ends_the_loss(compiled, arguments):
    given = arguments("linear_cross_entropy", "float32", N=4, R=2)
    shard = Shard(0, np.array([0, 2, 4], np.int32), False, Broken())
    with pytest.raises(ZeroDivisionError):
        compiled.linear_cross_entropy(**given, shard=shard)


@pytest.mark.parametrize(("kernel", "heads"), [("block_forward", True), ("block_backward", False)])
def test_an_error_at_a_barrier_ends_a_block(compiled, arguments, kernel, heads):
    shard = Shard(0, np.array([0, 2, 4], np.int32), heads, Broken())
    given = arguments(kernel, "float32", lengths=(2, 2))
    given["saved"] = np.zeros(compiled.block_saved_size(given["spec"], 4, True), "float32")
    given = exactly(compiled, kernel, given | {"shard": shard})
    with pytest.raises(ZeroDivisionError):
        getattr(compiled, kernel)(**given)


@pytest.mark.parametrize("kernel", SHARDED)
def test_a_shard_needs_a_barrier(compiled, arguments, kernel):
    sizes = {"N": 4} if kernel == "linear_cross_entropy" else {}
    shard = Shard(0, np.array([0, 2, 4], np.int32), False, None)
    with pytest.raises(TypeError, match=f"{kernel}: {NO_SHARD}"):
        getattr(compiled, kernel)(**arguments(kernel, "float32", **sizes), shard=shard)


@pytest.mark.parametrize("kernel", SHARDED)
def test_a_barrier_of_another_number_of_threads_is_refused(compiled, arguments, barrier, kernel):
    sizes = {"N": 4} if kernel == "linear_cross_entropy" else {}
    shard = Shard(0, np.array([0, 3, 4], np.int32), True, barrier(3))
    with pytest.raises(ValueError, match="shard must have a barrier for 2 threads, got 3"):
        getattr(compiled, kernel)(**arguments(kernel, "float32", **sizes), shard=shard)


def test_a_thread_that_gives_up_ends_the_kernels_of_the_others(compiled, arguments, shards_of):
    given = arguments("linear_cross_entropy", "float32", N=4, R=2)
    one, other = shards_of([0, 2, 4])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(compiled.linear_cross_entropy, **given, shard=one)
        other.barrier.abort()
        with pytest.raises(threading.BrokenBarrierError):
            waiting.result(timeout=LIMIT)
