"""Owns the time of RustGPT's main job: the same amount of work, on generated texts.

25 texts with 169 target tokens for 100 epochs, then 53 texts with 1,216 for 100 epochs; vocabulary
533, one head, no output projection in the attention, 493,973 parameters. RustGPT's optimised build
needs 21 seconds at best for it on two cores of a current server processor.
"""

import argparse
import statistics
import time

import numpy as np

import rustgpt
from rustgpt.benchmark import Vocabulary

RUSTGPT_SECONDS = 21.0


def texts(n: int, targets: int, rng: np.random.Generator) -> list[list[int]]:
    """Return n texts of random tokens that have so many target tokens together."""
    lengths = np.full(n, targets // n)
    lengths[: targets % n] += 1
    shift = rng.integers(0, lengths.min() // 2, n // 2)  # texts differ in length, as real ones do
    lengths[: n // 2] += shift
    lengths[n // 2 : 2 * (n // 2)] -= shift
    assert lengths.sum() == targets
    return [[*rng.integers(1, 533, length).tolist(), 0] for length in lengths]


def job(arguments: argparse.Namespace) -> tuple[float, int]:
    """Train once; return the seconds and how many numbers the model learns."""
    rng = np.random.default_rng(0)
    statements, dialogues = texts(25, 169, rng), texts(53, 1216, rng)
    shape = rustgpt.ModelConfig(n_heads=1, attention_projection=False)
    settings = rustgpt.TrainConfig(
        pretrain_epochs=100,
        tune_epochs=100,
        batch_size=arguments.batch_size,
        threads=arguments.threads,
    )
    began = time.perf_counter()
    model = rustgpt.LLM(shape, Vocabulary(533))
    trainer = rustgpt.Trainer(model, settings)
    trainer.fit_ids(statements, settings.pretrain_epochs, settings.pretrain_rate, "pre-training")
    trainer.fit_ids(dialogues, settings.tune_epochs, settings.tune_rate, "instruction tuning")
    return time.perf_counter() - began, model.n_parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, help="runs (default: 5)")
    parser.add_argument("--threads", type=int, default=0, help="0: one a processor (default)")
    parser.add_argument("--batch-size", type=int, default=64, help="texts a step (default: 64)")
    arguments = parser.parse_args()
    runs = [job(arguments) for _ in range(arguments.repeat)]
    seconds = sorted(run[0] for run in runs)
    median = statistics.median(seconds)
    print(f"{runs[0][1]:,} parameters, batch {arguments.batch_size}")
    print(f"median {median:.2f} s, from {seconds[0]:.2f} to {seconds[-1]:.2f} s")
    print(f"RustGPT's optimised build / this: {RUSTGPT_SECONDS / median:.1f}")


if __name__ == "__main__":
    main()
