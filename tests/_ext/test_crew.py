"""Tests of kernels that several threads do together, in one call."""

import copy
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from rustgpt._ext.crew import Crew

from rustgpt.layers import team

HELPED = (
    "block_forward", "block_backward", "linear_cross_entropy", "adam_step", "sum_of_squares",
)  # fmt: skip


@pytest.fixture(params=[1, 2, 3, 7])
def crew(request):
    with team.crew_of(request.param) as found:
        assert type(found) is Crew
        assert found.n == request.param
        yield found


def guarded_all(guarded, given):
    """Return the arguments in arrays of their own, between pages that nobody may touch."""
    return {k: guarded(v) if isinstance(v, np.ndarray) else v for k, v in given.items()}


def helpers():
    return sum(thread.name == "rustgpt" for thread in threading.enumerate())


def is_same(mine, theirs):
    for name, value in theirs.items():
        if isinstance(value, np.ndarray) and name != "scratch":
            np.testing.assert_array_equal(mine[name], value, err_msg=name)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("variant", ["pre", "post", "RustGPT's"])
@pytest.mark.parametrize(
    ("lengths", "H", "D", "F"),
    [((20,), 4, 32, 96), ((3, 0, 5, 4), 3, 11, 50), ((70, 2), 1, 37, 1), ((1,), 2, 8, 16),
     ((2,), 2, 8, 0), ((), 2, 8, 16)],
)  # fmt: skip
def test_a_crew_makes_every_bit_of_a_block_as_one_thread_does(
    compiled, arguments, guarded, dtype, crew, lengths, H, D, F, variant, overwrite
):
    changes = {"pre_norm": variant == "pre", "gelu": variant != "RustGPT's"}
    changes |= {"projection": variant != "RustGPT's", "bias": variant == "pre"}
    given = arguments("block_forward", dtype, lengths=lengths, H=H, D=D, F=F, **changes)
    (N, C), rng = given["x"].shape, np.random.default_rng(1)
    gradients = {
        "dout": rng.standard_normal((N, C)).astype(dtype),
        "dparameters": rng.standard_normal(given["parameters"].size).astype(dtype),
    }

    def there_and_back(crew, *threads):
        scratch = compiled.block_scratch_size(N, max(lengths, default=0), C, F, *threads)
        mine = guarded_all(guarded, given | {"scratch": np.full(scratch, np.nan, dtype)})
        compiled.block_forward(**mine, crew=crew)
        out = mine.pop("out")
        back = guarded_all(guarded, gradients)
        back["dx"] = back["dout"]
        compiled.block_backward(**mine, **back, overwrite=overwrite, crew=crew)
        return {"out": out, "kept": mine["kept"], **back}

    alone = there_and_back(None)
    assert not np.isnan(alone["dparameters"]).any()
    assert not np.isnan(alone["out"]).any()
    is_same(there_and_back(crew, crew.n, True), alone)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("max_norm", [np.inf, 1e-3])
@pytest.mark.parametrize(
    ("N", "C", "V", "R"),
    [(20, 32, 100, 20), (20, 32, 100, 6), (3, 1, 5, 7), (2, 130, 40, 2),
     (3, 300, 1100, 3)],  # far: no cache of the second level has all of the weight
)  # fmt: skip
def test_a_crew_finds_every_bit_of_the_loss(
    compiled, arguments, guarded, dtype, crew, N, C, V, R, max_norm, transposed
):
    sizes = {"N": N, "C": C, "V": V, "R": R, "max_norm": max_norm, "transposed": transposed}
    given = arguments("linear_cross_entropy", dtype, **sizes)
    alone, mine = guarded_all(guarded, given), guarded_all(guarded, given)
    expected = compiled.linear_cross_entropy(**alone)
    assert compiled.linear_cross_entropy(**mine, crew=crew) == expected
    is_same(mine, alone)


def test_a_crew_finds_the_losses_without_gradients(compiled, arguments, dtype, crew):
    given = arguments("linear_cross_entropy", dtype, N=20, C=8, V=33, R=20, gradient=False)
    alone, mine = copy.deepcopy(given), copy.deepcopy(given)
    expected = compiled.linear_cross_entropy(**alone)
    assert compiled.linear_cross_entropy(**mine, crew=crew) == expected
    is_same(mine, alone)


@pytest.mark.parametrize("P", [0, 1, 15, 16, 17, 65, 4099])
def test_a_crew_updates_parameters_to_the_same_bits(
    compiled, arguments, guarded, dtype, crew, P
):  # fmt: skip
    given = arguments("adam_step", dtype, P=P)
    for edges in ([], [0, P], [P // 3, P // 2, P - P // 5, P]):
        given["edges"] = np.array(edges, np.int32)
        alone, mine = guarded_all(guarded, given), guarded_all(guarded, given)
        compiled.adam_step(**alone)
        compiled.adam_step(**mine, crew=crew)
        is_same(mine, alone)


@pytest.mark.parametrize("P", [0, 1, 63, 64, 65, 100003])
def test_a_crew_adds_up_squares_to_the_same_bits(compiled, arguments, guarded, dtype, crew, P):
    x = guarded(arguments("sum_of_squares", dtype, P=P)["x"])
    found = compiled.sum_of_squares(x, crew=crew)
    assert found == compiled.sum_of_squares(x)
    assert found == pytest.approx(np.sum(np.square(x, dtype=np.float64)), rel=1e-12)


@pytest.mark.parametrize("kernel", HELPED)
def test_a_crew_must_be_there(compiled, arguments, kernel):
    crew = Crew(2)
    given = arguments(kernel, "float32", **({"R": 5} if "linear" in kernel else {}))
    if "block" in kernel:
        N, C = given["x"].shape
        scratch = compiled.block_scratch_size(N, N, C, given["hidden_dim"], 2, True)
        given["scratch"] = np.zeros(scratch, np.float32)
    if compiled.level == "plain" and kernel in HELPED[:3]:
        return  # BLAS' products cannot be divided
    absent = pytest.raises(ValueError, match=f"{kernel}: crew must be entered")
    with absent:
        getattr(compiled, kernel)(**given, crew=crew)
    with crew:
        getattr(compiled, kernel)(**given, crew=crew)
    with absent:  # any more
        getattr(compiled, kernel)(**given, crew=crew)


@pytest.mark.parametrize("kernel", HELPED)
def test_a_crew_is_no_other_thing(compiled, arguments, kernel):
    with pytest.raises(TypeError, match=r"crew must be a rustgpt\._ext\.crew\.Crew, got int"):
        getattr(compiled, kernel)(**arguments(kernel, "float32"), crew=3)


def test_a_crew_does_not_share_a_batch_with_others(compiled, arguments):
    from rustgpt.reference.share import Share

    share = Share(0, np.array([0, 2, 4], np.int32), False, team.barrier(2))
    given = arguments("linear_cross_entropy", "float32", N=4, C=3, V=7, R=4)
    with Crew(2) as crew, pytest.raises(ValueError, match="share"):
        compiled.linear_cross_entropy(**given, share=share, crew=crew)


@pytest.mark.parametrize("n", [0, -1, 2**20])
def test_a_crew_has_at_least_one_thread(n):
    with pytest.raises(ValueError, match="n must be 1 to 1048575"):
        Crew(n)


def test_threads_of_a_crew_are_there_while_it_is_entered():
    before = helpers()
    crew = Crew(3)
    assert helpers() == before
    with crew:
        assert helpers() == before + 2
        with pytest.raises(RuntimeError, match="entered twice"):
            crew.__enter__()
        assert helpers() == before + 2
    assert helpers() == before


@pytest.mark.parametrize("n", [1, 2])
def test_a_crew_is_entered_once_and_left_once(n):
    crew = Crew(n)
    with pytest.raises(RuntimeError, match="entered once, and left once"):
        crew.__exit__()
    with crew, pytest.raises(RuntimeError, match="entered twice"):
        crew.__enter__()
    with pytest.raises(RuntimeError, match="entered twice"):
        crew.__enter__()
    with pytest.raises(RuntimeError, match="entered once, and left once"):
        crew.__exit__()


def test_ctrl_c_while_a_thread_starts_leaves_none(monkeypatch):
    start = threading.Thread.start

    def interrupted(thread):
        start(thread)
        if len(started) == 1:
            raise KeyboardInterrupt
        started.append(thread)

    started, before, crew = [], helpers(), Crew(4)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        crew.__enter__()
    assert started
    assert helpers() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked")
def test_a_forked_process_does_without_the_crew():
    program = """
import os, sys
import numpy as np
from rustgpt._ext.crew import Crew
from rustgpt.backend import ops

x = np.arange(1000, dtype=np.float32)
with Crew(2) as crew:
    expected = ops.sum_of_squares(x, crew)
    child = os.fork()
    if child == 0:
        os._exit(0 if ops.sum_of_squares(x, crew) == expected else 3)
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], timeout=60, check=False)
    assert done.returncode == 0


def test_a_thread_that_cannot_be_started_leaves_none(monkeypatch):
    start, started = threading.Thread.start, []

    def failing(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    before, crew = helpers(), Crew(3)
    monkeypatch.setattr(threading.Thread, "start", failing)
    with pytest.raises(RuntimeError, match="can't start"):
        crew.__enter__()
    assert started
    assert helpers() == before


def test_a_crew_helps_one_kernel_at_a_time(compiled):
    x, errors = np.ones(10**6, np.float32), []
    ended = threading.Event()

    def add_up():
        while not ended.is_set():
            try:
                assert compiled.sum_of_squares(x, crew=crew) == 10**6
            except ValueError as error:
                errors.append(str(error))

    with Crew(2) as crew:
        threads = [threading.Thread(target=add_up) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30
        while not errors and time.monotonic() < deadline:
            time.sleep(0.001)
        ended.set()
        for thread in threads:
            thread.join()
    assert "at work on one kernel at a time" in errors[0]


def test_helpers_sleep_until_there_is_work(compiled):
    with Crew(3) as crew:
        compiled.sum_of_squares(np.ones(1000, np.float32), crew=crew)
        began = time.process_time()
        time.sleep(0.5)
        assert time.process_time() - began < 0.25


def test_a_copy_of_a_layer_has_no_crew():
    with Crew(2) as crew:
        assert copy.deepcopy([crew]) == [None]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="nobody says where threads run")
def test_helpers_keep_off_the_processor_of_the_caller(compiled):
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("there is one processor")
    x = np.ones(1000, np.float32)
    before = set(threading.enumerate())
    with Crew(2) as crew:
        (helper,) = set(threading.enumerate()) - before
        for processor in sorted(allowed)[:2]:
            os.sched_setaffinity(0, {processor})
            os.sched_setaffinity(0, allowed)  # it is there still
            compiled.sum_of_squares(x, crew=crew)
            assert os.sched_getaffinity(helper.native_id) == allowed - {processor}
            assert os.sched_getaffinity(0) == allowed
