"""Tests of one model in several threads, and of what generation does to the process."""

import contextlib
import copy
import itertools
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info

import rustgpt
from rustgpt.backend import single_threaded_blas
from rustgpt.config import TrainConfig
from rustgpt.folder_lock import FolderLock
from rustgpt.layers.cache import Cache
from rustgpt.layers.context import Context
from rustgpt.layers.gpt import build_layers
from rustgpt.layers.gradients import Gradients
from rustgpt.layers.layer import Layer
from rustgpt.layers.memory import Workspace
from rustgpt.layers.output_projection import OutputProjection
from rustgpt.llm import LLM
from rustgpt.optim.adam import Adam
from rustgpt.stepper import Stepper
from rustgpt.text.tokenizer import WordTokenizer
from rustgpt.trainer import Trainer

from .models import offsets_of

pytestmark = pytest.mark.slow

TEXTS = ["the sun rises.", "water is wet.", "a cat naps.", "ants dig.", "no.", "rain falls."]


GPT2 = {
    "norm": "pre", "activation": "gelu", "attention_bias": True, "tie_embeddings": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def threads_often_take_turns():
    """Let Python change threads within a pass, and not only where a kernel lets others run."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(params=["default", "GPT-2", "by parts"])
def model(request, letters, small):
    changes = GPT2 if request.param == "GPT-2" else {}
    config = small(embedding_dim=12, max_seq_len=16, n_layers=2, seed=3, **changes)
    model = LLM(config, letters)
    for block in model.layers[1:3]:
        block.by_parts = request.param == "by parts"
    return model


def config_of(**changes):
    return TrainConfig(**{"batch_size": 3, "threads": 1, "seed": 1} | changes)


def test_answers_are_the_same_in_any_number_of_threads(backend, model):
    prompts = ["the s", "water", "", "zz", "rain falls on a cat", "no"]
    work = [(prompt, seed) for prompt in prompts for seed in range(4)] * (
        10 if backend == "cython" else 1
    )

    def answer(job):
        prompt, seed = job
        ids = np.arange(seed, 2 + len(prompt[:14]) + seed)
        loss = model.loss(ids, ids[::-1].copy(), offsets_of([1, len(ids) - 2, 1]))
        return model.generate(prompt, 12, 1.0, seed), model.logits(ids).tobytes(), loss

    expected = [answer(job) for job in work]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, work)) == expected


def test_gradients_of_several_threads_are_apart(backend, model):
    """Of batches of different sizes, each with its own `Gradients` and `Context`."""
    rng = np.random.default_rng(4)
    work = []
    for i in range(8):
        offsets = offsets_of(rng.integers(1, 17, 1 + i))
        ids, targets = rng.integers(0, 28, (2, offsets[-1])).astype(np.int32)
        work.append((ids, targets, offsets))
    together = threading.Barrier(8)

    def differentiate(i, times=1, begin=lambda: None):
        begin()
        found, gradients = [], Gradients(model.layers)
        workspace = Workspace(model.config.dtype)
        ids, targets, offsets = work[i]
        for _ in range(times):
            gradients.begin()
            ctx = Context(offsets, gradients=gradients, workspace=workspace)
            loss = model.loss_and_gradients(ids, targets, 0.1, ctx)
            gradients.finish()
            found.append((loss, gradients.flat.tobytes()))
        return found

    expected = [differentiate(i) for i in range(8)]
    assert len({flat for ((_, flat),) in expected}) == 8
    with ThreadPoolExecutor(8) as pool:
        running = [pool.submit(differentiate, i, 20, together.wait) for i in range(8)]
        for one, ((loss, flat),) in zip(running, expected, strict=True):
            assert one.result() == [(loss, flat)] * 20


def test_caches_of_several_threads_are_apart(backend, model):
    def read(seed):
        ids = np.random.default_rng(seed).integers(1, 28, (3, 12)).tolist()
        cache, several = Cache(16), Cache(16, slots=3)
        found = [model.decode([token], cache).tobytes() for token in ids[0]]
        for i in range(0, 12, 3):
            texts = [text[i : i + 3] for text in ids]
            found.append(model.decode_batch(texts, several, [2, 0, 1]).tobytes())
        return found

    expected = [read(seed) for seed in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read, range(40))) == expected


def test_interleaved_streams_are_apart(model):
    prompts = [[1, 2], [9], [20, 21, 22]]
    expected = [list(model.stream_ids(prompt, 10, 1.0, seed=7)) for prompt in prompts]
    streams = [model.stream_ids(prompt, 10, 1.0, seed=7) for prompt in prompts]
    found = [[], [], []]
    for tokens in itertools.zip_longest(*streams):
        for made, token in zip(found, tokens, strict=True):
            made += [] if token is None else [token]
    assert found == expected


@pytest.fixture
def slow_update(monkeypatch):
    """Change the weights in two parts, with time between them in which others may look."""
    original = Adam.update

    def in_two_parts(self, gradients, rate, factor, part):
        middle = (part.start + part.stop) // 2
        original(self, gradients, rate, factor, slice(part.start, middle))
        time.sleep(0.001)
        original(self, gradients, rate, factor, slice(middle, part.stop))

    monkeypatch.setattr(Adam, "update", in_two_parts)
    monkeypatch.setattr("rustgpt.parallel.data_parallel.TOKENS_AT_LEAST", 1)


@contextlib.contextmanager
def beside(*work):
    """Let each job be done again and again, in a thread of its own; none may fail."""
    failed, end = [], threading.Event()

    def repeat(job):
        try:
            while not end.is_set():
                job()
        except BaseException as error:
            failed.append(error)

    users = [threading.Thread(target=repeat, args=[job]) for job in work]
    for user in users:
        user.start()
    try:
        yield
    finally:
        end.set()
        for user in users:
            user.join()
    assert not failed


@pytest.mark.parametrize("threads", [1, 2])
def test_generation_beside_a_training_sees_the_weights_between_two_steps(
    model, slow_update, threads
):
    """And the training comes out as it does alone."""
    ids, longer = [1, 5, 9], np.arange(16)
    alone = copy.deepcopy(model)
    states = [alone.logits(ids).tobytes()]
    Trainer(alone, config_of(threads=threads), on_step=lambda _: states.append(
        alone.logits(ids).tobytes())
    ).fit(TEXTS, 20, 1e-2, "test")  # fmt: skip
    seen = set()

    def use():
        seen.add(model.logits(ids).tobytes())
        model.generate("the", 3)
        model.loss(longer, longer, offsets_of([7, 9]))

    with beside(use, use):
        Trainer(model, config_of(threads=threads)).fit(TEXTS, 20, 1e-2, "test")
    assert len(seen) > 3
    assert seen <= set(states)
    np.testing.assert_array_equal(model.parameters, alone.parameters)


def test_texts_beside_a_training(small, slow_update):
    """Each token is of the weights between two steps; an open chat then reads all anew."""
    tokenizer = WordTokenizer.train(TEXTS)
    model = LLM(small(max_seq_len=24, seed=3), tokenizer)
    alone, ids = copy.deepcopy(model), [1, 2, 3]

    def scores(of):
        return of.decode(ids, Cache(24)).tobytes()

    states = [scores(alone)]
    trainer = Trainer(alone, config_of(), on_step=lambda _: states.append(scores(alone)))
    trainer.fit(TEXTS, 40, 1e-2, "test")
    seen, chat = set(), model.chat(4)
    with beside(
        lambda: seen.add(scores(model)),
        lambda: chat.send("the sun"),
        lambda: tokenizer.decode(model.stream_ids(ids, 30)),
        lambda: model.samples("water", num_beams=3, n=2, max_new_tokens=4),
        lambda: model.samples("a cat", n=3, temperature=1.0, logprobs=2, max_new_tokens=30),
    ):
        Trainer(model, config_of()).fit(TEXTS, 40, 1e-2, "test")
    assert len(seen) > 2
    assert seen <= set(states)
    np.testing.assert_array_equal(model.parameters, alone.parameters)
    chat.remembers = False
    assert chat.send("the sun") == alone.chat(4).send("the sun")


class Visited(Layer):
    """A layer that calls `visit` in the midst of each pass, if that is not a visitor's own."""

    visit = None

    def forward(self, x, ctx):
        self.call()
        return x.copy()

    def backward(self, dout, ctx):
        self.call()
        return dout.copy()

    def call(self):
        visit, type(self).visit = type(self).visit, None
        if visit:
            visit()
        type(self).visit = visit


@pytest.mark.parametrize("by_parts", [False, True])
def test_a_call_in_the_midst_of_another_disturbs_neither(
    backend, letters, small, monkeypatch, by_parts
):
    """As when the system changes threads there, but each time."""
    config, ids = small(max_seq_len=16, n_layers=3), [1, 5, 9, 2]

    def build():
        layers = build_layers(config, letters.vocab_size)
        layers[2:2] = [Visited()]
        model = LLM(config, letters, layers)
        for block in (layers[1], *layers[3:5]):
            block.by_parts = by_parts
        return model

    def train(model):
        Trainer(model, config_of()).fit(TEXTS, 2, 1e-2, "test")
        return model.parameters

    model, alone, seen = build(), build(), []
    logits, text = model.logits(ids), model.generate("the", 9)
    untrained = model.logits(ids[::-1])
    monkeypatch.setattr(Visited, "visit", lambda: seen.append(model.logits(ids[::-1])))
    np.testing.assert_array_equal(model.logits(ids), logits)
    assert model.generate("the", 9) == text
    n = len(seen)
    trained = train(model)
    monkeypatch.setattr(Visited, "visit", None)
    assert n > 2
    np.testing.assert_array_equal(seen[:n], [untrained] * n)
    assert len(seen) == n + 2 * 2 * 2  # forward and backward of two steps of two epochs
    np.testing.assert_array_equal(seen[n::2], seen[n + 1 :: 2])
    assert len({states.tobytes() for states in seen[n:]}) == 4
    np.testing.assert_array_equal(trained, train(alone))


def test_setting_the_parameters_is_one_change(model):
    ids = [1, 5, 9]
    values = [model.parameters.copy(), model.parameters * 0.5]
    expected = []
    for value in values:
        model.parameters = value
        expected.append(model.logits(ids).tobytes())
    end, seen = threading.Event(), set()

    def read():
        while not end.is_set():
            seen.add(model.logits(ids).tobytes())

    reader = threading.Thread(target=read)
    reader.start()
    for value in values * 2000:
        model.parameters = value
    end.set()
    reader.join()
    assert seen <= set(expected)


def test_who_waits_for_a_folder_keeps_nobody_from_the_weights(small, tmp_path):
    model = LLM(small(), WordTokenizer.train(TEXTS))
    with FolderLock(tmp_path):
        saving = threading.Thread(target=model.save, args=(tmp_path,))
        saving.start()
        while saving.is_alive() and not model.weights_lock.alone.locked():
            Trainer(model, config_of()).fit(TEXTS, 1, 1e-2, "test")
            model.generate("a", 2)
            break
        assert not model.weights_lock.alone.locked()
    saving.join()
    LLM.load(tmp_path)


def test_a_copy_beside_a_training_that_starts(letters, small):
    for _ in range(30):
        model = LLM(small(), letters)
        training = threading.Thread(
            target=Trainer(model, config_of()).fit, args=(TEXTS, 1, 1e-2, "a")
        )
        training.start()
        assert copy.deepcopy(model).n_parameters == model.n_parameters
        training.join()


FIRST_USE = """
import threading, numpy as np, rustgpt
model = rustgpt.LLM(rustgpt.ModelConfig(n_layers=1), rustgpt.WordTokenizer.train(["a b c"]))
together, failed = threading.Barrier(8), []
def use():
    together.wait()
    try:
        model.logits([1, 2, 3])
        rustgpt.ops.relu_forward
    except BaseException as error:
        failed.append(repr(error))
threads = [threading.Thread(target=use) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(failed)
"""


def test_the_first_use_may_be_by_several_threads_at_once():
    path = os.pathsep.join([*sys.path, str(Path(rustgpt.__file__).parents[1])])
    for _ in range(4):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_USE], capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        assert (done.stdout, done.stderr) == ("[]\n", "")


def test_saving_beside_a_training_waits_for_the_end_of_a_step(small, tmp_path, monkeypatch):
    model, states = LLM(small(), WordTokenizer.train(TEXTS)), []
    trainer = Trainer(model, config_of())
    original = Adam.update

    def save_meanwhile(self, *given):
        saving.start()
        time.sleep(0.05)
        original(self, *given)
        states.append(model.parameters.tobytes())
        trainer.stop()

    saving = threading.Thread(target=model.save, args=(tmp_path,))
    monkeypatch.setattr(Adam, "update", save_meanwhile)
    trainer.fit(TEXTS, 1, 1e-2, "test")
    saving.join()
    monkeypatch.undo()
    assert [LLM.load(tmp_path).parameters.tobytes()] == states


def test_a_sample_within_a_bfloat16_training_is_made_in_float32(model, switch_backend):
    switch_backend("reference")
    batch = [np.array([1, 2, 3, 4], np.int32)]
    gradients = {}
    for precision in ("float32", "bfloat16"):
        twin = copy.deepcopy(model)
        with Stepper(twin, config_of(precision=precision)) as stepper:
            stepper.step(batch, 1e-2)
            within = twin.logits([1, 2, 3])
        gradients[precision] = stepper.parallel.gradients
        np.testing.assert_array_equal(within, twin.logits([1, 2, 3]))
    assert (gradients["float32"] != gradients["bfloat16"]).any()


def test_a_call_like_the_one_before_allocates_nothing(backend, model, monkeypatch):
    """Whatever thread has made it: calls that have ended leave their memory to the next."""
    from rustgpt.layers import memory

    made, original = [], memory.aligned

    def aligned(size, dtype):
        made.append(size)
        return original(size, dtype)

    monkeypatch.setattr(memory, "aligned", aligned)
    model.logits([1] * 16)
    assert made
    made.clear()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(model.logits, [2] * 16).result()
    model.logits([3] * 16)
    assert made == []


# BLAS


def blas_threads():
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.fixture
def two_blas_threads():
    """Let BLAS have two threads, whatever the machine has."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2, user_api="blas"):
        yield


@pytest.mark.usefixtures("two_blas_threads")
def test_a_stream_limits_blas_only_while_layers_make_a_token(model, monkeypatch):
    """One kernel that makes a token does without BLAS."""
    model.generate("a", 1)  # the kernels are loaded
    within, before = [], blas_threads()
    assert set(before) == {2}
    original = OutputProjection.forward

    def spy(self, *given):
        within.append(set(blas_threads()))
        return original(self, *given)

    monkeypatch.setattr(OutputProjection, "forward", spy)
    one, two = model.stream_ids([1], 5, 1.0), model.stream_ids([2], 5, 1.0)
    next(one)
    next(two)
    assert blas_threads() == before
    one.close()
    assert blas_threads() == before
    next(two)
    del one, two
    assert blas_threads() == before
    assert within == ([{1}] * 3 if model.layers[1].by_parts else [])


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_goes_back_whoever_leaves_last(model):
    model.generate("a", 1)
    before = blas_threads()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: model.generate("the", 10, 1.0, seed), range(100)))
        assert blas_threads() == before  # while the threads are still alive
    assert blas_threads() == before


@pytest.mark.usefixtures("two_blas_threads")
def test_one_thread_may_limit_blas_and_another_restore_it():
    """Also where a third, here the main one, has set a limit before."""
    before = blas_threads()
    guards = [single_threaded_blas(), single_threaded_blas()]
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        pools = [one, other]
        for pool, guard in zip(pools, guards, strict=True):
            pool.submit(guard.__enter__).result()
            assert set(blas_threads()) == {1}
        one.submit(guards[0].__exit__).result()
        assert set(blas_threads()) == {1}
        other.submit(guards[1].__exit__).result()
        assert blas_threads() == before  # while both threads are alive


@pytest.mark.usefixtures("two_blas_threads")
def test_who_was_torn_away_before_its_end_limits_blas_no_more():
    before = blas_threads()
    with single_threaded_blas():
        torn = single_threaded_blas()
        torn.__enter__()
        assert set(blas_threads()) == {1}
    assert set(blas_threads()) == {1}
    del torn  # as when Ctrl-C comes just before `__exit__`
    assert blas_threads() == before
