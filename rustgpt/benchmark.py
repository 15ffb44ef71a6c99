"""Owns how fast a model trains: steps on random tokens, beside what the machine can do at best."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from rustgpt.backend import ops
from rustgpt.config import TrainConfig
from rustgpt.errors import ConfigError
from rustgpt.layers.transformer import TransformerBlock
from rustgpt.llm import LLM
from rustgpt.parallel.data_parallel import thread_count
from rustgpt.profiler import BYTES, FLOPS, Line, Profiler
from rustgpt.stepper import Stepper
from rustgpt.text.tokenizer import BaseTokenizer

WARM_UP: Final = 2  # steps that do not count: they touch their memory for the first time
BETWEEN: Final = 0.5  # seconds of steps from one measurement of the machine's limits to the next
PRODUCT: Final = 768  # rows and columns of the matrix product that is the limit
COPY: Final = 2**27  # bytes of the copy that is the other; no cache holds them
REPEATS: Final = 4  # products, or copies, in one measurement


class Vocabulary(BaseTokenizer):
    """What a model that is only measured needs of a tokenizer: V, and what ends a text (or -1)."""

    vocab_size: int = 0
    end_id: int = 0

    def __init__(self, size: int, end_id: int = 0) -> None:
        self.vocab_size, self.end_id = size, end_id


class Limits:
    """What the machine does at best, when as many threads as train do it at once.

    That is a product of matrices of `dtype` and, if `with_copy`, a copy of much memory.
    """

    def __init__(self, threads: int, dtype: str, with_copy: bool = False) -> None:
        self.threads = threads
        self._product = ops.matrix_product  # as it is before a profiler counts its calls
        self._matrices = [
            [np.ones((PRODUCT, PRODUCT), dtype) for _ in range(3)] for _ in range(threads)
        ]
        size = COPY // threads if with_copy else 0
        self._memory = [[np.ones(size, np.uint8) for _ in range(2)] for _ in range(threads)]
        self._rates: dict[str, list[float]] = {FLOPS: [], BYTES: []}

    def measure(self) -> None:
        """Measure once more; keep every BLAS on one thread meanwhile."""
        self._rates[FLOPS].append(self._rate(self._product, self._matrices, 2 * PRODUCT**3))
        if size := self._memory[0][0].nbytes:  # which are read and written
            self._rates[BYTES].append(self._rate(np.copyto, self._memory, 2 * size))

    def _rate(self, work: Callable[..., object], arrays: list[list[Any]], amount: int) -> float:
        """Return how much (in 1e9) all threads do in a second."""
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(lambda mine: work(*mine), arrays))  # starts the threads
            began = time.perf_counter()
            list(pool.map(lambda mine: [work(*mine) for _ in range(REPEATS)], arrays))
            seconds = time.perf_counter() - began
        return self.threads * REPEATS * amount / seconds / 1e9

    def of_all(self, unit: str) -> float:
        """Return the median rate of all threads together."""
        return statistics.median(self._rates[unit])

    def of_one(self) -> dict[str, float]:
        """Return the median rates of one thread, by unit."""
        return {unit: self.of_all(unit) / self.threads for unit in self._rates}


@dataclass(frozen=True)
class Speed:
    """How fast a model trained.

    Parameters
    ----------
    steps, threads
        How many were measured, and how many made them.
    tokens_per_second, milliseconds_a_step
        Medians of the steps.
    slow, fast
        Tokens per second that a tenth of the steps did not reach, and that a tenth surpassed.
    gflops
        Operations (in 1e9) per second: of a token, 6 a parameter in a product, and 12 a layer,
        dimension and token of the context.
    product_gflops
        The matrix product's, in the same number of threads.
    share_of_product
        The one as a share of the other.
    peak_memory_mb
        The most that the process ever had; None where the system does not tell.
    """

    steps: int
    threads: int
    tokens_per_second: float
    slow: float
    fast: float
    milliseconds_a_step: float
    gflops: float
    product_gflops: float
    share_of_product: float
    peak_memory_mb: float | None


@dataclass(frozen=True)
class Profile:
    """Where the time of a step went.

    Parameters
    ----------
    steps, threads
        How many were measured, and how many made them.
    milliseconds_a_step
        Their mean, with the kernels' calls being timed.
    limits
        The most that one thread of this machine does, by unit.
    lines
        The kernels.
    share_between
        Of the threads' time: Python, NumPy and waiting between the kernels.
    """

    steps: int
    threads: int
    milliseconds_a_step: float
    limits: dict[str, float]
    lines: list[Line]
    share_between: float


@dataclass
class Benchmark:
    """Trains a model on random tokens, at a learning rate of 0: it stays as it is.

    Parameters
    ----------
    model
        Its blocks may be run part by part meanwhile.
    training
        Batch size, threads, seed and the optimizer's settings.
    context
        T, tokens of each text; 0 for as many as the model can see.
    seconds
        How long each measurement takes, beside its first two steps, which do not count.
    steps
        How many steps it has instead, unless 0.

    Raises
    ------
    ConfigError
        If the model cannot see so many tokens.
    """

    model: LLM
    training: TrainConfig
    context: int = 0
    seconds: float = 5.0
    steps: int = 0

    def __post_init__(self) -> None:
        most = self.model.max_seq_len
        self.context = self.context or most
        if not 1 <= self.context <= most:
            raise ConfigError(
                f"context must be from 1 to the model's max_seq_len {most}, got {self.context}"
            )

    @property
    def threads(self) -> int:
        """How many make a step."""
        return thread_count(self.training, self.model)

    @property
    def multiplied(self) -> int:
        """Parameters in products: without the embedding table where it is only looked up."""
        config = self.model.config
        table = 0 if config.tie_embeddings else config.embedding_dim
        return self.model.n_parameters - table * self.model.tokenizer.vocab_size

    def speed(self) -> Speed:
        """Measure whole steps."""
        config = self.model.config
        attended = config.n_layers * config.embedding_dim * self.context
        limits = Limits(self.threads, config.dtype)
        taken = self._train(limits)
        paces = self.training.batch_size * self.context / np.array(taken)
        slow, pace, fast = np.percentile(paces, (10, 50, 90)).tolist()
        gflops = pace * (6 * self.multiplied + 12 * attended) / 1e9
        limit = limits.of_all(FLOPS)
        return Speed(
            steps=len(taken),
            threads=self.threads,
            tokens_per_second=pace,
            slow=slow,
            fast=fast,
            milliseconds_a_step=1e3 * statistics.median(taken),
            gflops=gflops,
            product_gflops=limit,
            share_of_product=gflops / limit,
            peak_memory_mb=peak_memory_mb(),
        )

    def profile(self, by_parts: bool = False) -> Profile:
        """Measure each kernel.

        With `by_parts`, each part of a block runs as a kernel of its own, rather than the whole
        block in one, as it otherwise trains.
        """
        with ExitStack() as after:
            for layer in self.model.layers:
                if isinstance(layer, TransformerBlock):
                    after.callback(setattr, layer, "by_parts", layer.by_parts)
                    layer.by_parts = by_parts
            threads = self.threads  # blocks by parts may allow fewer
            limits = Limits(threads, self.model.config.dtype, with_copy=True)
            with Profiler() as profiler:
                taken = self._train(limits, profiler)
        steps, total = len(taken), sum(taken)
        lines = profiler.lines(steps, total * threads, limits.of_one())
        return Profile(
            steps=steps,
            threads=threads,
            milliseconds_a_step=1e3 * total / steps,
            limits=limits.of_one(),
            lines=lines,
            share_between=1 - sum(line.share for line in lines),
        )

    def _train(self, limits: Limits, profiler: Profiler | None = None) -> list[float]:
        """Return how many seconds each step took; the limits are measured between steps."""
        rng = np.random.default_rng(self.training.seed)
        shape = self.training.batch_size, self.context + 1
        batch = list(rng.integers(0, self.model.tokenizer.vocab_size, shape, np.int32))
        taken: list[float] = []
        steps, seconds = (self.steps, math.inf) if self.steps else (math.inf, self.seconds)
        with Stepper(self.model, self.training) as stepper:
            for _ in range(WARM_UP):
                stepper.step(batch, 0.0)
            if profiler:
                profiler.clear()
            limits.measure()
            began = measured = time.perf_counter()
            while len(taken) < steps and (not taken or time.perf_counter() - began <= seconds):
                step_began = time.perf_counter()
                stepper.step(batch, 0.0)
                taken.append(time.perf_counter() - step_began)
                if profiler:
                    profiler.count()
                if time.perf_counter() - measured > BETWEEN:
                    limits.measure()
                    measured = time.perf_counter()
            limits.measure()
        return taken


def peak_memory_mb() -> float | None:
    """Return the most memory that this process ever had; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
