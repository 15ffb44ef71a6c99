"""Owns the speed and the memory of training: rustgpt beside PyTorch, in one run.

The same GPT-2 (norm before, GELU, biases, tied embeddings) on the same random tokens; and the same
Llama (RMS norm, rotary positions, fewer heads of keys, SwiGLU, tied embeddings), whose hidden layer
is so wide that the feed-forward layers have equally many weights. Each system has a process of its
own, which waits while another has its turn; every round gives each a turn and measures the rate of
the machine's own SGEMM. Needs PyTorch in the same environment.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SYSTEMS = ("rustgpt", "rustgpt-bf16", "eager", "compile", "bf16")

PRECISIONS = {"rustgpt": "float32", "rustgpt-bf16": "bfloat16"}


@dataclass(frozen=True)
class Shape:
    """A model and the batch that it is trained on."""

    batch: int
    context: int
    n_layers: int
    n_heads: int
    dim: int
    vocab_size: int
    steps: int  # in one turn
    n_kv_heads: int = 0  # of a Llama; 0 for a GPT-2

    @property
    def hidden_dim(self) -> int:
        """4 C; of a Llama two thirds of it, to whole vectors of 8 numbers."""
        return -(-self.dim // 3) * 8 if self.n_kv_heads else 4 * self.dim

    @property
    def n_parameters(self) -> int:
        C = self.dim
        block = 12 * C * C + 13 * C
        if self.n_kv_heads:
            keys = C // self.n_heads * self.n_kv_heads
            block = 2 * C * (C + keys) + 3 * C * self.hidden_dim + 2 * C
            return self.n_layers * block + self.vocab_size * C + C
        return self.n_layers * block + (self.vocab_size + self.context) * C + 2 * C

    @property
    def flops_per_token(self) -> int:
        """6 operations a parameter, and 12 a layer, dimension and token of the context."""
        return 6 * self.n_parameters + 12 * self.n_layers * self.dim * self.context


SHAPES = {
    "seed1": Shape(1, 20, 3, 4, 128, 512, 60),
    "seed16": Shape(16, 32, 3, 4, 128, 512, 20),
    "char": Shape(12, 64, 4, 4, 128, 65, 12),
    "baby": Shape(8, 256, 6, 6, 384, 65, 1),
    "gpt2": Shape(4, 64, 12, 12, 768, 50304, 1),
    "gpt2-long": Shape(1, 1024, 12, 12, 768, 50304, 1),
    "wide": Shape(4, 128, 4, 20, 1280, 8192, 1),  # four layers of GPT-2 large
}
KEY_HEADS = {"seed1": 2, "seed16": 2, "char": 2, "baby": 2, "gpt2": 4, "gpt2-long": 4, "wide": 5}
SHAPES |= {
    f"llama-{name}": replace(SHAPES[name], n_kv_heads=heads) for name, heads in KEY_HEADS.items()
}


def wait_for_turn() -> None:
    """Block until the parent asks for a turn; end when it is gone."""
    if not sys.stdin.readline():
        sys.exit(0)


def report(tokens_per_second: float) -> None:
    print(json.dumps([tokens_per_second, peak_memory()]), flush=True)


def peak_memory() -> float:
    """Return this process's, in MB: `getrusage` counts what the one that started it had, too."""
    try:
        with open("/proc/self/status", encoding="ascii") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
    except (OSError, StopIteration):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def configuration(shape: Shape) -> Any:
    """Return the `ModelConfig` of a shape."""
    import rustgpt

    found = rustgpt.ModelConfig.preset(
        "llama-tiny" if shape.n_kv_heads else "gpt2", embedding_dim=shape.dim,
        hidden_dim=shape.hidden_dim, n_layers=shape.n_layers, n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads or shape.n_heads, max_seq_len=shape.context,
    )  # fmt: skip
    return found


def serve_rustgpt(shape: Shape, threads: int, precision: str) -> None:
    """Train, a turn at a time."""
    import rustgpt
    from rustgpt.benchmark import Vocabulary
    from rustgpt.stepper import Stepper

    ids = random_ids(shape, shape.steps)
    settings = rustgpt.TrainConfig(
        batch_size=shape.batch, threads=threads, schedule="constant", weight_decay=0.1, beta2=0.99,
        precision=precision,
    )  # fmt: skip
    model = rustgpt.LLM(configuration(shape), Vocabulary(shape.vocab_size))
    assert model.n_parameters == shape.n_parameters

    with Stepper(model, settings) as stepper:
        while True:
            wait_for_turn()
            began = time.perf_counter()
            for batch in ids:
                stepper.step(batch, 1e-4)
            report(ids[..., 1:].size / (time.perf_counter() - began))


def serve_pytorch(kind: str, shape: Shape, threads: int) -> None:
    """Train, a turn at a time."""
    import torch
    from pytorch_gpt2 import GPT2, Training
    from pytorch_llama import Llama

    torch.manual_seed(0)
    settings = argparse.Namespace(
        threads=threads, max_norm=5.0, rate=1e-4, betas=(0.9, 0.99), decay=0.1
    )
    model: torch.nn.Module
    if shape.n_kv_heads:
        model = Llama(
            shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.dim, shape.hidden_dim,
            shape.vocab_size, shape.context,
        )  # fmt: skip
    else:
        model = GPT2(shape.n_layers, shape.n_heads, shape.dim, shape.vocab_size, shape.context)
    assert sum(p.numel() for p in model.parameters()) == shape.n_parameters
    training = Training(kind, model, settings)
    ids = torch.from_numpy(random_ids(shape, shape.steps).astype(np.int64))
    while True:
        wait_for_turn()
        began = time.perf_counter()
        for batch in ids:
            training.step(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        report(shape.steps * shape.batch * shape.context / (time.perf_counter() - began))


def random_ids(shape: Shape, steps: int) -> Any:
    """Return (steps, B, T + 1) random tokens, the same for every system."""
    rng = np.random.default_rng(0)
    return rng.integers(0, shape.vocab_size, (steps, shape.batch, shape.context + 1), np.int32)


def sgemm_gflops(n: int = 768) -> float:
    """Return the rate of one thread's float32 matrix product through SciPy's BLAS."""
    from rustgpt.backend import ops, single_threaded_blas

    a, b, out = (np.ones((n, n), np.float32) for _ in range(3))
    with single_threaded_blas():
        began = time.perf_counter()
        for _ in range(8):
            ops.matrix_product(a, b, out)
        return 8 * 2 * n**3 / (time.perf_counter() - began) / 1e9


class System:
    """A process that trains when it is asked to."""

    def __init__(
        self, name: str, shape: str, threads: int, script: str = __file__, more: Sequence[str] = ()
    ) -> None:
        command = [sys.executable, script, "--serve", name, "--shapes", shape, *more]
        environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
        self.process = subprocess.Popen(
            [*command, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        self.paces: list[float] = []
        self.memory = 0.0

    def turn(self, keep: bool) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit("a system ended before its turn did; see its message above")
        pace, self.memory = json.loads(line)
        if keep:
            self.paces.append(pace)

    def close(self) -> None:
        self.process.communicate()


def spread(values: list[float]) -> str:
    return f"{min(values):.2f}-{max(values):.2f}"


def compare(name: str, systems: list[str], rounds: int, threads: int) -> list[dict[str, Any]]:
    """Give each system its turns; return a row of results for each."""
    shape = SHAPES[name]
    running = {system: System(system, name, threads) for system in systems}
    rates = []
    for round_ in range(rounds + 2):  # two rounds to warm up
        rates.append(sgemm_gflops())
        for system in running.values():
            system.turn(keep=round_ >= 2)
    limit = statistics.median(rates) * threads
    results = []
    for label, system in running.items():
        system.close()
        pace = statistics.median(system.paces)
        ratios = [a / b for a, b in zip(running[systems[0]].paces, system.paces, strict=True)]
        gflops = pace * shape.flops_per_token / 1e9
        results.append({
            "shape": name, "system": label, "threads": threads, "tokens_per_second": pace,
            "spread": spread([p / pace for p in system.paces]),
            "ratio": statistics.median(ratios), "ratio_spread": spread(ratios),
            "gflops": gflops, "share_of_sgemm": gflops / limit, "memory_mb": system.memory,
        })  # fmt: skip
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--systems", default="rustgpt,eager", help=f"of {', '.join(SYSTEMS)}")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", type=int, default=1, help="of each system (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--serve", choices=SYSTEMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve in PRECISIONS:
        precision = PRECISIONS[arguments.serve]
        serve_rustgpt(SHAPES[arguments.shapes], arguments.threads, precision)
    elif arguments.serve:
        serve_pytorch(arguments.serve, SHAPES[arguments.shapes], arguments.threads)
    else:
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    systems = arguments.systems.split(",")
    if not arguments.json:
        print(
            f"{'shape':<15} {'system':<12} {'tokens/s':>10} {'spread':>10} {'GFLOP/s':>8} "
            f"{'of SGEMM':>8} {systems[0] + ' is':>10} {'spread':>10} {'memory':>8}"
        )
    for name in arguments.shapes.split(","):
        for row in compare(name, systems, arguments.rounds, arguments.threads):
            if arguments.json:
                print(json.dumps(row), flush=True)
                continue
            print(
                f"{row['shape']:<15} {row['system']:<12} {row['tokens_per_second']:>10,.0f} "
                f"{row['spread']:>10} {row['gflops']:>8.1f} {row['share_of_sgemm']:>8.0%} "
                f"{row['ratio']:>8.2f} x {row['ratio_spread']:>10} {row['memory_mb']:>5,.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
