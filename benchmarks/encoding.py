"""Owns the speed of tokenizers, in MB of UTF-8 a second of one core, and what training takes."""

import argparse
import bisect
import copy
import itertools
import os
import random
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

os.environ["RAYON_NUM_THREADS"] = "1"  # one core for the package tokenizers too

from rustgpt.text.tokenizer import KINDS, tokenizer_for

SHORT = 30  # characters of a part
COMMON = 20_000  # words that recur
STARTS = [*"bcdfghklmnprstw", "st", "tr", "ch", "sh"]
SOUNDS = [a + b for a in STARTS for b in "aeiou"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="texts in UTF-8")
    parser.add_argument("--repeat", type=int, default=5, help="measurements (default: 5)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=[*KINDS])
    text = "also generated text of so many MB, in which three of ten words were never seen before"
    parser.add_argument("--rare", type=int, default=0, metavar="MB", help=text)
    text = "train on so many generated MB instead, and tell how much memory that takes"
    parser.add_argument("--train", type=int, default=0, metavar="MB", help=text)
    arguments = parser.parse_args()
    if arguments.train:
        for kind in arguments.kinds:
            train(kind, arguments.train)
        return
    texts = {file.name: file.read_text(encoding="utf-8") for file in arguments.files}
    if arguments.rare:
        texts["rare words"] = "".join(generated(arguments.rare))
    print(f"{'':<28}{'':>9}{'MB/s, median:':>18}{f'parts of {SHORT}':>21}")
    print(f"{'text':<22}{'kind':<6}{'tokens':>9}", end="")
    print(f"{'first':>9}{'again':>9}{'first':>12}{'again':>9}")
    for name, text in texts.items():
        for kind in arguments.kinds:
            measure(name, text, kind, arguments.repeat)


def measure(name: str, text: str, kind: str, repeat: int) -> None:
    """Print how fast a text is encoded whole and in parts, by a new tokenizer and again."""
    trained = tokenizer_for([text], kind)
    parts = [text[i : i + SHORT] for i in range(0, len(text), SHORT)]
    rates: list[list[float]] = [[], [], [], []]
    for _ in range(repeat):
        for i, cut in enumerate(([text], parts)):
            tokenizer = copy.deepcopy(trained)
            for again in (0, 1):
                rates[2 * i + again].append(rate(tokenizer, cut))
    row = f"{name:<22}{kind:<6}{trained.vocab_size:>9,}"
    whole, whole_again, short, short_again = map(statistics.median, rates)
    print(f"{row}{whole:>9.1f}{whole_again:>9.1f}{short:>12.1f}{short_again:>9.1f}", flush=True)


def rate(tokenizer, texts: list[str]) -> float:
    began = time.process_time()
    for text in texts:
        tokenizer.encode(text)
    return sum(len(text.encode()) for text in texts) / (time.process_time() - began) / 1e6


def generated(megabytes: int, share: float = 0.3) -> Iterator[str]:
    """Yield text: words whose frequency falls with their rank, and new ones."""
    draw = random.Random(0)

    def word(least: int, most: int) -> str:
        return "".join(draw.choices(SOUNDS, k=draw.randint(least, most)))

    common = [word(1, 5) for _ in range(COMMON)]
    weights = [*itertools.accumulate(1 / (rank + 2) for rank in range(COMMON))]
    left = megabytes * 10**6
    while left > 0:
        words = []
        for _ in range(2000):
            at = bisect.bisect(weights, draw.random() * weights[-1])
            new = draw.random() < share
            words.append(word(4, 7) if new else common[min(at, COMMON - 1)])
        text = " ".join(words).replace("a ", "a, ").replace("u ", "u.\n")
        left -= len(text)
        yield text


def train(kind: str, megabytes: int) -> None:
    """Print the most private memory of a training beyond that at its start (Linux)."""
    tokenizer_for(["The first loads what is needed."], kind, 500)
    first, most, ended = private(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            most[0] = max(most[0], private() - first)

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.process_time()
    tokenizer = tokenizer_for(generated(megabytes, 0.1), kind)
    ended.set()
    watching.join()
    seconds = time.process_time() - began
    print(
        f"{kind:<6}{megabytes:>6} MB: {tokenizer.vocab_size:,} tokens, {most[0]:.0f} MB of memory, "
        f"{seconds:.0f} s with the making of the text",
        flush=True,
    )


def private() -> float:
    """Return the MB of memory that are this process's alone."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 1024


if __name__ == "__main__":
    main()
