"""Owns the speed of greedy generation at RustGPT's sizes: one head, vocabulary 533, 80 tokens."""

import argparse
import statistics
import time

import rustgpt
from rustgpt.benchmark import Vocabulary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=50, help="texts (default: 50)")
    arguments = parser.parse_args()
    shape = rustgpt.ModelConfig(n_heads=1, attention_projection=False)
    model = rustgpt.LLM(shape, Vocabulary(533, end_id=-1))
    speeds = []
    for _ in range(arguments.repeat):
        began = time.perf_counter()
        made = len(list(model.stream_ids([1, 2, 3, 4, 5], 75)))
        speeds.append(made / (time.perf_counter() - began))
    print(
        f"median {statistics.median(speeds):,.0f} tokens/s, "
        f"from {min(speeds):,.0f} to {max(speeds):,.0f}"
    )


if __name__ == "__main__":
    main()
