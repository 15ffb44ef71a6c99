"""Owns the speed of greedy generation: rustgpt beside what the memory allows, and beside others.

Every round gives each system a turn of each kind, and reads the memory. To make a token reads all
weights once, for as many texts as are made together: so the rate at which rustgpt reads weights and
caches stands beside that at which as many threads read memory and do nothing else. PyTorch with a
cache (GPT-2's form alone) and transformers' `generate` come in where they are installed, with the
same sizes, each in a process of its own that waits while another has its turn.
"""

import argparse
import importlib.util
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from training import System, report, wait_for_turn

import rustgpt
from rustgpt.benchmark import Vocabulary
from rustgpt.layers.cache import Cache

OTHERS = ("torch", "transformers")
READ = 2**29  # bytes of the memory that is read: no cache holds them


@dataclass(frozen=True)
class Shape:
    """A model, and what is made with it."""

    sizes: dict[str, Any]  # of `ModelConfig`
    vocab_size: int
    prompt: int  # tokens that a text begins with
    new: int  # tokens that are made then
    kinds: dict[str, int]  # texts that are made together; 0 for the reading of a long prompt
    long: int = 0  # tokens of that prompt

    def config(self) -> rustgpt.ModelConfig:
        return rustgpt.ModelConfig(**self.sizes)

    def others(self) -> tuple[str, ...]:
        """Return which other systems have the model."""
        return ("transformers",) if self.config().positions == "rotary" else OTHERS


GPT2 = {
    "norm": "pre", "activation": "gelu", "attention_bias": True, "output_bias": False,
    "tie_embeddings": True,
}  # fmt: skip
LLAMA = {
    "norm": "pre", "norm_type": "rms_norm", "activation": "swiglu", "feed_forward_bias": False,
    "positions": "rotary", "output_bias": False, "tie_embeddings": True,
}  # fmt: skip
SHAPES = {
    "rustgpt": Shape(
        {"n_heads": 1, "attention_projection": False, "max_seq_len": 80}, 533, 5, 75,
        {"1 text": 1, "8 texts": 8},
    ),
    "gpt2": Shape(
        {"embedding_dim": 768, "hidden_dim": 3072, "n_heads": 12, "n_layers": 12,
         "max_seq_len": 1024, **GPT2}, 50257, 64, 8,
        {"1 text": 1, "8 texts": 8, "prompt": 0}, long=512,
    ),
    "smollm2": Shape(
        {"embedding_dim": 576, "hidden_dim": 1536, "n_heads": 9, "n_kv_heads": 3, "n_layers": 30,
         "max_seq_len": 2048, "rope_theta": 100000.0, **LLAMA}, 49152, 64, 8,
        {"1 text": 1, "8 texts": 8, "prompt": 0}, long=512,
    ),
}  # fmt: skip


class Rustgpt:
    """A model of some shape, its texts and what it reads."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.model = rustgpt.LLM(shape.config(), Vocabulary(shape.vocab_size, end_id=-1))

    def turn(self, kind: str, threads: int) -> tuple[float, float]:
        """Return the tokens made (or read) in a second, and the bytes read in a second."""
        self.model.threads = threads
        shape, B = self.shape, self.shape.kinds[kind]
        cache = Cache(self.model.max_seq_len, B or 1)
        if B == 0:
            began = time.perf_counter()
            self.model.decode([1] * shape.long, cache)
            return shape.long / (time.perf_counter() - began), 0.0
        fresh = self.model.decode_batch([[1] * shape.prompt] * B, cache).argmax(axis=1)
        began = time.perf_counter()
        for _ in range(shape.new):
            fresh = self.model.decode_batch(fresh[:, None].tolist(), cache).argmax(axis=1)
        seconds = time.perf_counter() - began
        return B * shape.new / seconds, shape.new * self.bytes_read(B) / seconds

    def bytes_read(self, B: int) -> float:
        """Return what is read for one token of each of B texts: weights, keys and values."""
        config, shape = self.shape.config(), self.shape
        C = config.embedding_dim
        kv_dim = C // config.n_heads * config.n_kv_heads
        places = config.max_seq_len if config.positions == "learned" else 0
        tables = (places + (0 if config.tie_embeddings else shape.vocab_size)) * C
        seen = shape.prompt + shape.new / 2
        return 4.0 * (self.model.n_parameters - tables + B * seen * 2 * kv_dim * config.n_layers)

    def stream(self) -> float:
        """Return the tokens of a stream in a second."""
        began = time.perf_counter()
        made = sum(1 for _ in self.model.stream_ids([1] * self.shape.prompt, self.shape.new))
        return made / (time.perf_counter() - began)


class Memory:
    """Memory that threads read."""

    def __init__(self) -> None:
        self.numbers = np.ones(READ // 4, np.float32)

    def rate(self, threads: int) -> float:
        """Return the bytes that so many threads read in a second: the better of two ways."""
        parts = np.array_split(self.numbers, threads)
        return max(self._rate(parts, way) for way in (np.max, np.sum))

    def _rate(self, parts: list[Any], read: Any) -> float:
        others = [threading.Thread(target=read, args=(part,)) for part in parts[1:]]
        began = time.perf_counter()
        for other in others:
            other.start()
        read(parts[0])
        for other in others:
            other.join()
        return READ / (time.perf_counter() - began)


# Other systems, each in a process of its own


def serve(system: str, shape: Shape, kind: str, threads: int) -> None:
    """Make tokens, a turn at a time."""
    import torch

    torch.set_num_threads(threads)
    make = {"torch": torch_maker, "transformers": transformers_maker}[system](shape)
    B, new = shape.kinds[kind] or 1, shape.new if shape.kinds[kind] else 1
    ids = torch.ones(B, shape.prompt if shape.kinds[kind] else shape.long, dtype=torch.long)
    while True:
        wait_for_turn()
        with torch.inference_mode():
            seconds = make(ids, new)
        report((B * new if shape.kinds[kind] else shape.long) / seconds)


def torch_maker(shape: Shape) -> Any:
    """Return make(ids, n): the seconds that the tokens after the prompt take, or the prompt."""
    from pytorch_gpt2 import GPT2 as Model

    config = shape.config()
    model = Model(
        config.n_layers, config.n_heads, config.embedding_dim, shape.vocab_size, config.max_seq_len
    )

    def make(ids: Any, n: int) -> float:
        cache: list[Any] = [None] * config.n_layers
        began = time.perf_counter()
        fresh = model.decode(ids, cache).argmax(dim=-1, keepdim=True)
        if n > 1:
            began = time.perf_counter()
        for _ in range(n if n > 1 else 0):
            fresh = model.decode(fresh, cache).argmax(dim=-1, keepdim=True)
        return time.perf_counter() - began

    return make


def transformers_maker(shape: Shape) -> Any:
    """The same with `generate`; what the prompt takes is measured alone, and left out."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = shape.config()
    if config.positions == "rotary":
        form = transformers.LlamaConfig(
            vocab_size=shape.vocab_size, max_position_embeddings=config.max_seq_len,
            hidden_size=config.embedding_dim, intermediate_size=config.hidden_dim,
            num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads, tie_word_embeddings=config.tie_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
    else:
        form = transformers.GPT2Config(
            vocab_size=shape.vocab_size, n_positions=config.max_seq_len,
            n_embd=config.embedding_dim, n_inner=config.hidden_dim, n_layer=config.n_layers,
            n_head=config.n_heads, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(form).eval()

    def seconds(ids: Any, n: int) -> float:
        began = time.perf_counter()
        model.generate(ids, max_new_tokens=n, min_new_tokens=n, do_sample=False, pad_token_id=0)
        return time.perf_counter() - began

    def make(ids: Any, n: int) -> float:
        return seconds(ids, 1) if n == 1 else seconds(ids, n + 1) - seconds(ids, 1)

    return make


class Other(System):
    """Another system's process for one shape, kind and number of threads."""

    def __init__(self, name: str, shape: str, kind: str, threads: int) -> None:
        super().__init__(name, shape, threads, __file__, ("--kind", kind))


# The table


def compare(name: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind and number of threads."""
    shape, own, memory = SHAPES[name], Rustgpt(SHAPES[name]), Memory()
    rows = [(kind, n) for kind in shape.kinds for n in map(int, arguments.threads.split(","))]
    others = [
        system for system in arguments.systems.split(",")
        if system in shape.others() and importlib.util.find_spec(system)
    ]  # fmt: skip
    for kind, n in rows:
        running = {system: Other(system, name, kind, n) for system in others}
        found: dict[str, list[float]] = {"tokens": [], "bytes": [], "memory": []}
        for round_ in range(arguments.rounds + 1):  # one to warm up
            tokens, read = own.turn(kind, n)
            rate = memory.rate(n)
            for system in running.values():
                system.turn(keep=round_ > 0)
            if round_:
                for key, value in zip(found, (tokens, read, rate), strict=True):
                    found[key].append(value)
        for system in running.values():
            system.close()
        share = [a / b for a, b in zip(found["bytes"], found["memory"], strict=True)]
        yield {
            "shape": name, "kind": kind, "threads": n,
            "tokens_per_second": statistics.median(found["tokens"]),
            "bytes_per_second": statistics.median(found["bytes"]),
            "memory_bytes_per_second": statistics.median(found["memory"]),
            "share_of_memory": statistics.median(share),
            **{system: statistics.median(running[system].paces) for system in running},
        }  # fmt: skip


def show(row: dict[str, Any]) -> None:
    share = f"{row['share_of_memory']:.0%}" if row["bytes_per_second"] else "-"
    others = [f"{row[system]:,.0f}" if system in row else "-" for system in OTHERS]
    print(
        f"{row['shape']:<8} {row['kind']:<8} {row['threads']:>7} "
        f"{row['tokens_per_second']:>10,.0f} {row['bytes_per_second'] / 1e9:>7.1f} "
        f"{row['memory_bytes_per_second'] / 1e9:>7.1f} {share:>6} "
        f"{others[0]:>8} {others[1]:>12}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--systems", default=",".join(OTHERS), help="beside rustgpt (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each (default: 7)")
    parser.add_argument("--threads", default="1,2", help="of each system (default: 1,2)")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--serve", choices=OTHERS, help=argparse.SUPPRESS)
    parser.add_argument("--kind", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        shape = SHAPES[arguments.shapes]
        serve(arguments.serve, shape, arguments.kind, int(arguments.threads))
        return
    if not arguments.json:
        print(
            f"{'shape':<8} {'kind':<8} {'threads':>7} {'tokens/s':>10} {'GB/s':>7} {'memory':>7} "
            f"{'share':>6} {'torch':>8} {'transformers':>12}"
        )
    for name in arguments.shapes.split(","):
        for row in compare(name, arguments):
            print(json.dumps(row), flush=True) if arguments.json else show(row)
    if "rustgpt" in arguments.shapes and not arguments.json:
        own = Rustgpt(SHAPES["rustgpt"])
        paces = [own.stream() for _ in range(50)]
        print(f"rustgpt, 1 text as a stream: median {statistics.median(paces):,.0f} tokens/s")


if __name__ == "__main__":
    sys.exit(main())
