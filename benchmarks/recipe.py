"""Owns nanoGPT's recipe for a CPU, from start to end: rustgpt beside PyTorch.

The characters of a text (tinyshakespeare), a GPT-2 of 4 layers, 4 heads and 128 dimensions, 2,000
steps of 12 windows of 64 characters, then the loss on all of the last tenth of the text. Each run
is a process of its own and is timed whole: start, imports, reading, training, validation. In run i
all systems see the same windows in the same order, drawn with seed i; each has its own initial
values, PyTorch those of nanoGPT. nanoGPT names a validation loss of 1.88 for this recipe (its
layers have no biases, these have); the goal is that loss in at most 0.7 of PyTorch's time. Needs
PyTorch in the same environment.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from training import PRECISIONS, SYSTEMS

BATCH, CONTEXT = 12, 64
N_LAYERS, N_HEADS, DIM = 4, 4, 128
PEAK_RATE, FINAL_SHARE = 1e-3, 0.1  # of the cosine schedule
BETAS, WEIGHT_DECAY, MAX_NORM = (0.9, 0.99), 0.1, 1.0
WINDOWS_AT_ONCE = 64  # in the validation
GOAL_LOSS, GOAL_SHARE = 1.88, 0.7  # nanoGPT's loss of this recipe; rustgpt's time / PyTorch's


def warmup_steps(iterations: int) -> int:
    """Return 100 for the recipe's 2,000 iterations, and fewer for fewer."""
    return iterations // 20


def read(path: Path) -> tuple[NDArray[np.int32], NDArray[np.int32], int]:
    """Return a text's characters as ids, its first nine tenths and the rest, and how many kinds."""
    codes = np.frombuffer(path.read_text(encoding="utf-8").encode("utf-32-le"), np.uint32)
    kinds, ids = np.unique(codes, return_inverse=True)
    edge = len(ids) * 9 // 10
    if len(ids) - edge <= CONTEXT:
        sys.exit(f"{path} is too short: its last tenth must be longer than {CONTEXT} characters")
    return ids[:edge].astype(np.int32), ids[edge:].astype(np.int32), len(kinds)


def draw_windows(ids: NDArray[np.int32], iterations: int, seed: int) -> NDArray[np.int32]:
    """Return (iterations * B, T + 1) windows from anywhere in the text."""
    starts = np.random.default_rng(seed).integers(0, len(ids) - CONTEXT, iterations * BATCH)
    return ids[starts[:, None] + np.arange(CONTEXT + 1)]


def mean_loss(
    ids: NDArray[np.int32],
    summed: Callable[[NDArray[np.int32], NDArray[np.int32]], float],
) -> float:
    """Return the mean loss over a text in windows, one after another; the last part is left out.

    Parameters
    ----------
    summed
        Returns the sum of the losses of (B, T) ids and of (B, T) tokens that follow them.
    """
    end = (len(ids) - 1) // CONTEXT * CONTEXT
    inputs, targets = ids[:end].reshape(-1, CONTEXT), ids[1 : end + 1].reshape(-1, CONTEXT)
    total = 0.0
    for first in range(0, len(inputs), WINDOWS_AT_ONCE):
        some = slice(first, first + WINDOWS_AT_ONCE)
        total += summed(inputs[some], targets[some])
    return total / end


def run_rustgpt(arguments: argparse.Namespace) -> float:
    """Train by the recipe; return the validation loss."""
    import rustgpt
    from rustgpt.backend import single_threaded_blas
    from rustgpt.benchmark import Vocabulary

    training, validation, n_kinds = read(arguments.text)
    config = rustgpt.ModelConfig(
        embedding_dim=DIM, hidden_dim=4 * DIM, n_layers=N_LAYERS, n_heads=N_HEADS,
        max_seq_len=CONTEXT, activation="gelu", norm="pre", attention_bias=True,
        output_bias=False, tie_embeddings=True, seed=arguments.seed,
    )  # fmt: skip
    model = rustgpt.LLM(config, Vocabulary(n_kinds))
    settings = rustgpt.TrainConfig(
        batch_size=BATCH, beta1=BETAS[0], beta2=BETAS[1], weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_NORM, schedule="cosine", final_rate=FINAL_SHARE,
        warmup_steps=warmup_steps(arguments.iterations), seed=arguments.seed,
        threads=arguments.threads, precision=PRECISIONS[arguments.serve],
    )  # fmt: skip
    windows = draw_windows(training, arguments.iterations, arguments.seed)
    rustgpt.Trainer(model, settings).fit_ids(windows, 1, PEAK_RATE, "recipe")

    def summed(ids: NDArray[np.int32], targets: NDArray[np.int32]) -> float:
        offsets = np.arange(len(ids) + 1, dtype=np.int32) * CONTEXT
        return model.loss(ids.ravel(), targets.ravel(), offsets)

    with single_threaded_blas():
        return mean_loss(validation, summed)


def run_pytorch(arguments: argparse.Namespace) -> float:
    """Train by the recipe; return the validation loss."""
    import torch
    from pytorch_gpt2 import GPT2

    from rustgpt.data_order import DataOrder

    training, validation, n_kinds = read(arguments.text)
    torch.manual_seed(arguments.seed)
    model = GPT2(N_LAYERS, N_HEADS, DIM, n_kinds, CONTEXT)
    trainer = pytorch_trainer(model, arguments)
    windows = draw_windows(training, arguments.iterations, arguments.seed)
    # The order in which rustgpt's Trainer shuffles its first epoch.
    order = DataOrder(len(windows), arguments.seed, 0, 0)[:]
    ids = torch.from_numpy(windows[order].astype(np.int64))
    for step, batch in enumerate(ids.view(-1, BATCH, CONTEXT + 1)):
        for group in trainer.optimizer.param_groups:
            group["lr"] = rate(step, arguments.iterations)
        trainer.step(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())

    def summed(ids: NDArray[np.int32], targets: NDArray[np.int32]) -> float:
        mean = model(torch.from_numpy(ids).long(), torch.from_numpy(targets).long())
        return float(mean) * ids.size

    with torch.inference_mode():
        return mean_loss(validation, summed)


def pytorch_trainer(model: Any, arguments: argparse.Namespace) -> Any:
    """Return a model's `Training` as in nanoGPT: initial values, and no decay of vectors."""
    import torch
    from pytorch_gpt2 import Training

    with torch.no_grad():
        for block in model.blocks:
            # What adds to the residual sum, 2 L times, begins smaller.
            block.attention.projection.weight /= math.sqrt(2 * N_LAYERS)
            block.feed_forward[2].weight /= math.sqrt(2 * N_LAYERS)
    settings = argparse.Namespace(
        threads=arguments.threads, max_norm=MAX_NORM, rate=PEAK_RATE, betas=BETAS, decay=0.0
    )
    trainer = Training(arguments.serve, model, settings)
    matrices = [value for value in model.parameters() if value.dim() >= 2]
    vectors = [value for value in model.parameters() if value.dim() < 2]
    trainer.optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors}],
        PEAK_RATE, BETAS, 1e-8, 0.0, fused=True,
    )  # fmt: skip
    return trainer


def rate(step: int, iterations: int) -> float:
    """Return the learning rate of a step (the first is 0), as rustgpt has it."""
    warmup = warmup_steps(iterations)
    if step < warmup:
        return PEAK_RATE * (step + 1) / warmup
    share = (step - warmup) / max(1, iterations - 1 - warmup)
    return PEAK_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * share)))


def timed(
    system: str, arguments: argparse.Namespace, iterations: int, seed: int
) -> tuple[float, float, float]:
    """Run a system in a process of its own; return its validation loss, seconds, CPU seconds."""
    threads = str(arguments.threads)
    began, used = time.perf_counter(), cpu_seconds()
    done = subprocess.run(
        [
            sys.executable, __file__, str(arguments.text), "--serve", system,
            "--threads", threads, "--iterations", str(iterations), "--seed", str(seed),
        ],
        stdout=subprocess.PIPE, text=True, check=False,
        env=dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads),
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{system} failed; see its message above")
    return json.loads(done.stdout), seconds, cpu_seconds() - used


def cpu_seconds() -> float:
    """Return what the processes that this one has started and that have ended took."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def middle(values: list[float], digits: int) -> str:
    """Return the median and the spread, as text."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def compare(arguments: argparse.Namespace) -> None:
    """Run the systems in turn; print each run and then the medians."""
    systems = arguments.systems.split(",")
    for system in systems:
        timed(system, arguments, 1, 0)  # brings the files into memory
    losses: dict[str, list[float]] = {system: [] for system in systems}
    times: dict[str, list[float]] = {system: [] for system in systems}
    for run in range(arguments.repeat):
        turn = run % len(systems)
        for system in systems[turn:] + systems[:turn]:
            loss, seconds, cpu = timed(system, arguments, arguments.iterations, run)
            losses[system].append(loss)
            times[system].append(seconds)
            print(
                f"run {run}: {system:<12} loss {loss:.4f}, {seconds:.2f} s, {cpu:.2f} s of CPU",
                flush=True,
            )
    ours = f"{systems[0]} / it"
    print(f"\n{'system':<12} {'validation loss':>22} {'seconds':>22} {ours:>22}")
    for system in systems:
        ratios = [a / b for a, b in zip(times[systems[0]], times[system], strict=True)]
        print(
            f"{system:<12} {middle(losses[system], 4):>22} {middle(times[system], 2):>22} "
            f"{middle(ratios, 2):>22}"
        )
    print(f"medians (smallest-largest) of {arguments.repeat}; whoever goes first changes each run")
    print(f"goal: a loss of {GOAL_LOSS} or less in {GOAL_SHARE} x the seconds of eager or less")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path, help="the file with tinyshakespeare")
    parser.add_argument("--systems", default="rustgpt,eager", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default: 5)")
    parser.add_argument("--threads", type=int, default=1, help="of each system (default: 1)")
    parser.add_argument("--iterations", type=int, default=2000, help="steps (default: 2000)")
    parser.add_argument("--serve", choices=SYSTEMS, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if min(arguments.repeat, arguments.threads, arguments.iterations) < 1:
        parser.error("--repeat, --threads and --iterations must be at least 1")
    if unknown := set(arguments.systems.split(",")) - set(SYSTEMS):
        parser.error(f"there is no system {', '.join(sorted(unknown))}; of {', '.join(SYSTEMS)}")
    if not arguments.text.is_file():
        parser.error(f"there is no file {arguments.text}")
    if not arguments.serve:
        compare(arguments)
    else:
        print(
            json.dumps((run_rustgpt if arguments.serve in PRECISIONS else run_pytorch)(arguments))
        )


if __name__ == "__main__":
    main()
