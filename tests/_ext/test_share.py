"""Tests of kernels that several threads call for one batch, each with a share of it."""

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rustgpt.layers import team
from rustgpt.reference.share import Share, whole

pytestmark = pytest.mark.grid  # every case of what may go wrong, or be divided

LENGTHS = (3, 0, 5, 4)
EDGES = {"texts": [0, 8, 12], "heads": [0, 5, 12], "one has all": [0, 12, 12]}
ALONE = whole(4).barrier
NONE = "share must be a rustgpt.reference.share.Share"


class Broken:
    """Where nobody can meet."""

    def wait(self):
        return 1 / 0


def shares_of(edges, heads=False, compiled=True):
    """Return one share a thread; they meet at a barrier, compiled or Python's."""
    kind = team.barrier if compiled else threading.Barrier
    meeting, edges = kind(len(edges) - 1), np.array(edges, np.int32)
    return [Share(i, edges, heads, meeting) for i in range(len(edges) - 1)]


def together(kernel, shares, given):
    """Let as many threads as there are shares call the kernel with the same arrays.

    Returns what it returned to each.
    """
    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(lambda share: kernel(**given, share=share), shares))


def guarded_all(guarded, given):
    """Return the arguments in arrays of their own, between pages that nobody may touch."""
    return {k: guarded(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}


@pytest.fixture(params=[(edges, kind) for edges in EDGES for kind in ("compiled", "Python's")])
def shares(request):
    edges, kind = request.param
    return shares_of(EDGES[edges], edges == "heads", kind == "compiled")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("norm", ["pre", "post"])
@pytest.mark.parametrize("projection", [True, False])
def test_threads_do_of_a_block_what_one_does(
    kernels, arguments, guarded, close, rng, dtype, shares, overwrite, norm, projection
):
    changes = {"pre_norm": norm == "pre", "projection": projection, "gelu": norm == "pre"}
    given = arguments("block_forward", dtype, lengths=LENGTHS, F=13, **changes)
    H, (N, C) = given["n_heads"], given["x"].shape
    sizes = (N, C, 13, H, norm == "pre", projection)

    def there_and_back(run, kept, scratch, shared_dx):
        mine = {**given, "kept": np.full(kept, np.nan, dtype)}
        mine["scratch"] = np.full(scratch, np.nan, dtype)
        mine = guarded_all(guarded, mine)
        run(kernels.block_forward, mine)
        out = mine.pop("out").copy()
        dout = np.random.default_rng(1).standard_normal((N, C)).astype(dtype)
        first = np.ones_like(given["parameters"])
        back = guarded_all(guarded, {"dout": dout, "dparameters": first, "dx": np.zeros_like(dout)})
        if shared_dx:
            back["dx"] = back["dout"]  # each thread writes over its own rows alone
        run(kernels.block_backward, {**mine, **back, "overwrite": overwrite})
        return out, back["dx"], back["dparameters"]

    longest = max(LENGTHS)
    alone = there_and_back(
        lambda kernel, arrays: kernel(**arrays),
        kernels.block_kept_size(*sizes),
        kernels.block_scratch_size(N, longest, C, 13),
        False,
    )
    found = there_and_back(
        lambda kernel, arrays: together(kernel, shares, arrays),
        kernels.block_kept_size(*sizes, shared=True),
        kernels.block_scratch_size(N, longest, C, 13, len(shares)),
        True,
    )
    for mine, theirs in zip(found, alone, strict=True):
        close(mine, theirs, 10)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 6, 24])  # of logits, for both threads
@pytest.mark.parametrize("transposed", [False, True])
def test_threads_find_the_loss_that_one_finds(
    kernels, arguments, guarded, close, dtype, shares, overwrite, rows, transposed
):
    given = arguments(
        "linear_cross_entropy", dtype, N=12, C=5, V=7, R=rows, transposed=transposed
    ) | {"overwrite": overwrite}
    alone, mine = guarded_all(guarded, given), guarded_all(guarded, given)
    expected = kernels.linear_cross_entropy(**alone)
    found = together(kernels.linear_cross_entropy, shares, mine)
    assert expected == pytest.approx(alone["losses"].sum(), rel=1e-5)
    for share, loss in zip(shares, found, strict=True):
        assert loss == pytest.approx(mine["losses"][share.rows].sum(), rel=1e-5)
    for name in ("losses", "dx", "dweight", "dbias"):
        close(mine[name], alone[name], 3)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n", [2, 3])
def test_threads_divide_weights_that_no_cache_holds(
    compiled, arguments, guarded, close, dtype, transposed, n
):
    given = arguments(
        "linear_cross_entropy", dtype, N=7, C=61, V=70_001, R=7, transposed=transposed
    )
    shares = shares_of([7 * i // n for i in range(n + 1)])
    alone, mine = guarded_all(guarded, given), guarded_all(guarded, given)
    compiled.linear_cross_entropy(**alone)
    together(compiled.linear_cross_entropy, shares, mine)
    for name in ("losses", "dx", "dweight", "dbias"):
        close(mine[name], alone[name], 30)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_long_texts_need_no_more_scratch_than_the_threads_ask_for(
    compiled, arguments, guarded, close, dtype, norm
):
    lengths, pre = (3, 0, 192, 7), norm == "pre"  # more rows than attention takes at a time
    given = arguments("block_forward", dtype, lengths=lengths, H=2, D=3, F=13, pre_norm=pre)
    N, C = given["x"].shape
    dout = np.random.default_rng(1).standard_normal((N, C)).astype(dtype)
    found = []
    for shares in (shares_of([0, N]), shares_of([0, N // 2, N], True), shares_of([0, 3, N])):
        n = len(shares)
        kept = compiled.block_kept_size(N, C, 13, 2, pre, True, shared=n > 1)
        scratch = compiled.block_scratch_size(N, max(lengths), C, 13, n)
        sizes = {"kept": kept, "scratch": scratch}
        arrays = {name: np.full(size, np.nan, dtype) for name, size in sizes.items()}
        mine = guarded_all(guarded, given | arrays)
        together(compiled.block_forward, shares, mine)
        mine.pop("out")
        dparameters = np.zeros_like(given["parameters"])
        back = guarded_all(guarded, {"dout": dout, "dx": dout, "dparameters": dparameters})
        together(compiled.block_backward, shares, mine | back)
        found.append((back["dx"], back["dparameters"]))
    for others in found[1:]:
        for one, other in zip(others, found[0], strict=True):
            close(one, other, 30)


def test_overwritten_gradients_of_no_rows_are_zero(kernels, arguments):
    given = arguments("block_backward", "float32", lengths=(0,)) | {"overwrite": True}
    kernels.block_backward(**given)
    assert not given["dparameters"].any()
    given = arguments("linear_cross_entropy", "float32", N=0) | {"overwrite": True}
    kernels.linear_cross_entropy(**given)
    assert not given["dweight"].any()
    assert not given["dbias"].any()


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_overwriting_forgets_what_was_there(kernels, arguments, close, dtype, norm):
    pre = norm == "pre"
    given = arguments("block_backward", dtype, pre_norm=pre)
    size = arguments("block_forward", dtype, pre_norm=pre)["kept"].size
    given["kept"] = np.random.default_rng(2).standard_normal(size).astype(dtype)
    was, dx = given["dparameters"], given["dx"]
    zero = given | {"dparameters": np.zeros_like(was), "dx": dx.copy()}
    over = given | {"dparameters": np.full_like(was, np.nan), "dx": dx.copy()}
    kernels.block_backward(**zero)
    kernels.block_backward(**over, overwrite=True)
    close(over["dparameters"], zero["dparameters"])


@pytest.mark.parametrize("rows", [3, 5])  # which the two threads cannot halve
@pytest.mark.parametrize("edges", [[0, 6, 12], [0, 12, 12], [0, 0, 12]])
def test_logits_that_cannot_be_halved(kernels, arguments, guarded, close, dtype, rows, edges):
    given = arguments("linear_cross_entropy", dtype, N=12, C=5, V=7, R=rows) | {"overwrite": True}
    alone, mine = guarded_all(guarded, given), guarded_all(guarded, given)
    kernels.linear_cross_entropy(**alone)
    together(kernels.linear_cross_entropy, shares_of(edges), mine)
    for name in ("losses", "dx", "dweight", "dbias"):
        close(mine[name], alone[name], 3)


def test_a_thread_looks_up_its_own_rows_alone(kernels, arguments):
    given = arguments("embedding_forward", "float64", N=12)
    given["out"].fill(np.nan)
    kernels.embedding_forward(**given, share=shares_of([0, 3, 7, 12])[1])
    assert np.isfinite(given["out"][:, 0]).tolist() == [3 <= n < 7 for n in range(12)]


def test_threads_add_up_the_embeddings_that_one_does(
    kernels, arguments, guarded, close, dtype, shares
):
    given = arguments("embedding_forward", dtype, N=12, C=7)
    alone, mine = guarded_all(guarded, given), guarded_all(guarded, given)
    kernels.embedding_forward(**alone)
    together(kernels.embedding_forward, shares, mine)
    np.testing.assert_array_equal(mine["out"], alone["out"])
    given = arguments("embedding_backward", dtype, N=12, C=7)
    alone, mine = guarded_all(guarded, given), guarded_all(guarded, given)
    kernels.embedding_backward(**alone)
    together(kernels.embedding_backward, shares, mine)
    for name in ("dtokens", "dplaces"):
        np.testing.assert_array_equal(mine[name], alone[name])


@pytest.mark.parametrize(
    ("share", "message"),
    [
        (3, NONE),
        ("all", NONE),
        (Share(0, [0, 4], False, ALONE), NONE),
        (Share("first", np.array([0, 4], np.int32), False, ALONE), NONE),
        (Share(0, np.array([0, 4], np.int64), False, ALONE), NONE),
        (Share(0, np.array([0, 3], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
        (Share(0, np.array([1, 4], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
        (Share(0, np.array([0], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
        (Share(0, np.array([], np.int32), False, ALONE), "edges from 0 to the 4 rows"),
        (Share(1, np.array([0, 4], np.int32), False, ALONE), "an index below"),
        (Share(-1, np.array([0, 4], np.int32), False, ALONE), "an index below"),
        (Share(0, np.array([0, 5, 4], np.int32), False, ALONE), r"rise, but edges\[2\] is less"),
        (Share(0, np.array([0, -1, 4], np.int32), False, ALONE), r"rise, but edges\[1\] is less"),
    ],
)
@pytest.mark.parametrize("kernel", ["block_forward", "linear_cross_entropy", "embedding_backward"])
def test_a_wrong_share_is_refused(compiled, arguments, kernel, share, message):
    sizes = {"N": 4} if kernel == "linear_cross_entropy" else {}
    with pytest.raises((TypeError, ValueError), match=f"{kernel}: .*{message}"):
        getattr(compiled, kernel)(**arguments(kernel, "float32", **sizes), share=share)


@pytest.mark.parametrize("kernel", ["block_forward", "block_backward"])
def test_a_text_is_divided_only_with_the_heads(compiled, arguments, kernel):
    given = arguments(kernel, "float32", lengths=(3, 1))
    share = shares_of([0, 2, 4])[0]
    with pytest.raises(ValueError, match=f"{kernel}: share must have edges between texts"):
        getattr(compiled, kernel)(**given, share=share)


def test_rows_of_a_block_are_divided_whoever_made_them(kernels, arguments, close, dtype):
    given = arguments("linear_cross_entropy", dtype, N=12, C=5, V=7, R=12)
    alone = copy.deepcopy(given)
    kernels.linear_cross_entropy(**alone)
    x, given["x"] = given["x"], np.full_like(given["x"], np.nan)

    def call(share):
        time.sleep(0.05 * share.index)  # the first comes before the second has made its rows
        given["x"][share.rows] = x[share.rows]
        return kernels.linear_cross_entropy(**given, share=share)

    with ThreadPoolExecutor(2) as pool:
        losses = list(pool.map(call, shares_of([0, 2, 12])))
    assert sum(losses) == pytest.approx(alone["losses"].sum(), rel=1e-5)
    for name in ("losses", "dx", "dweight", "dbias"):
        close(given[name], alone[name], 3)


def test_losses_alone_can_be_divided(kernels, arguments, close, dtype, shares):
    given = arguments("linear_cross_entropy", dtype, N=12, C=5, V=7, R=4)
    given |= {"dx": None, "dweight": None, "dbias": None}
    alone, mine = ({**given, "losses": np.full(12, np.nan, dtype)} for _ in range(2))
    kernels.linear_cross_entropy(**alone)
    found = together(kernels.linear_cross_entropy, shares, mine)
    assert sum(found) == pytest.approx(alone["losses"].sum(), rel=1e-5)
    close(mine["losses"], alone["losses"], 3)


def test_an_error_in_a_meeting_ends_the_kernel(compiled, arguments):
    given = arguments("linear_cross_entropy", "float32", N=4, R=2)
    share = Share(0, np.array([0, 2, 4], np.int32), False, Broken())
    with pytest.raises(ZeroDivisionError):
        compiled.linear_cross_entropy(**given, share=share)


@pytest.mark.parametrize("kernel", ["block_forward", "block_backward"])
def test_an_error_in_a_meeting_of_a_block_ends_it(kernels, arguments, kernel):
    heads = kernel == "block_forward"
    given = arguments(kernel, "float32", lengths=(2, 2))
    N, C = given["x"].shape
    sizes = N, C, 7, 2, False, True
    given["kept"] = np.zeros(kernels.block_kept_size(*sizes, shared=True), "float32")
    given["scratch"] = np.zeros(kernels.block_scratch_size(N, 2, C, 7, 2), "float32")
    share = Share(0, np.array([0, 2, 4], np.int32), heads, Broken())
    with pytest.raises(ZeroDivisionError):
        getattr(kernels, kernel)(**given, share=share)


@pytest.mark.parametrize("kernel", ["block_forward", "block_backward", "linear_cross_entropy"])
def test_a_share_needs_a_barrier(compiled, arguments, kernel):
    sizes = {"N": 4} if kernel == "linear_cross_entropy" else {}
    share = Share(0, np.array([0, 2, 4], np.int32), False, None)
    with pytest.raises(TypeError, match=f"{kernel}: {NONE}"):
        getattr(compiled, kernel)(**arguments(kernel, "float32", **sizes), share=share)


def test_a_barrier_for_others_is_refused(compiled, arguments):
    given = arguments("linear_cross_entropy", "float32", N=4, R=2)
    share = Share(0, np.array([0, 2, 4], np.int32), False, team.barrier(3))
    with pytest.raises(ValueError, match="share must have a barrier for 2 threads, got 3"):
        compiled.linear_cross_entropy(**given, share=share)


def test_a_thread_that_gives_up_ends_the_kernels_of_the_others(compiled, arguments):
    given = arguments("linear_cross_entropy", "float32", N=4, R=2)
    one, other = shares_of([0, 2, 4])
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(compiled.linear_cross_entropy, **given, share=one)
        other.barrier.abort()
        with pytest.raises(threading.BrokenBarrierError):
            waiting.result(timeout=30)
