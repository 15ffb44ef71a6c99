"""Owns the speed of tokenizers: MB of UTF-8 that are encoded in a second of processor time."""

import argparse
import copy
import statistics
import time
from pathlib import Path

from rustgpt.text.tokenizer import KINDS, tokenizer_for


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="texts in UTF-8")
    parser.add_argument("--repeat", type=int, default=5, help="measurements (default: 5)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["word", "char", "byte"])
    arguments = parser.parse_args()
    print(f"{'file':<24}{'kind':<6}{'tokens':>9}{'a text':>9}{'more of it':>12}   MB/s, median")
    for file in arguments.files:
        text = file.read_text(encoding="utf-8")
        for kind in arguments.kinds:
            trained = tokenizer_for([text], kind)
            first, more = [], []
            for _ in range(arguments.repeat):
                tokenizer = copy.deepcopy(trained)  # which remembers nothing
                first.append(_rate(tokenizer, text))
                more.append(_rate(tokenizer, text))
            row = f"{file.name:<24}{kind:<6}{trained.vocab_size:>9,}"
            print(f"{row}{statistics.median(first):>9.1f}{statistics.median(more):>12.1f}")


def _rate(tokenizer, text: str) -> float:
    began = time.process_time()
    tokenizer.encode(text)
    return len(text.encode()) / (time.process_time() - began) / 1e6


if __name__ == "__main__":
    main()
