"""Measures the server over HTTP, and tries it: many clients, fuzzed requests, clients that leave.

    python benchmarks/serving.py speed --sizes gpt2
    python benchmarks/serving.py beside --model model.gguf --llama-server llama-server --threads 2
    python benchmarks/serving.py fuzz --count 100000
    python benchmarks/serving.py leave --count 1000
    python benchmarks/serving.py soak --seconds 300

The server is a process of its own. `speed` gives tokens per second of one streaming client and of
eight, in turn. `beside` does so of llama.cpp's server too, with the same prompts, of which none
begins as one before, and the same number of tokens, as both servers count them: of llama.cpp with
`-t THREADS -np 8`, room for each text (`-c`), and the ends of texts ruled out. `soak` keeps 64
connections busy; its exit status is 1 unless the server's memory is flat in its last half.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, repeat
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rustgpt.config import ModelConfig
from rustgpt.llm import LLM
from rustgpt.text.char_tokenizer import CharTokenizer
from tests.serve.fuzzing import request, status_of

SIZES = {
    "rustgpt": ModelConfig(),
    "gpt2": ModelConfig(
        embedding_dim=768, hidden_dim=3072, n_layers=12, n_heads=12, max_seq_len=1024, norm="pre",
        activation="gelu", attention_bias=True, output_bias=False, tie_embeddings=True,
    ),
}  # fmt: skip
VOCABULARY = {"rustgpt": 3404, "gpt2": 50_257}
PATH = "/v1/completions"
SHORT = "\U00020000\U00020001"
LONG = (
    "Mountains form where the plates of the Earth's crust meet. When two of them push against each "
    "other, rock is folded and lifted over millions of years, while wind, water and ice carry it "
    "away again, grain by grain, down to the sea. So a range of mountains tells us how old it is: "
    "young ones are high and sharp, old ones are low and round. The"
)
CLIENTS = 8
CONNECTIONS = 64
SAMPLES = 20  # of the memory
MOST_GROWTH = 0.01  # of memory that is called flat, from the third quarter of the time to the last


def tokenizer_of(size: int) -> CharTokenizer:
    """Return a tokenizer of so many characters, about."""
    return CharTokenizer.train(["".join(map(chr, range(0x20000, 0x20000 + size - 260)))], None)


class Server:
    """`rustgpt serve` of a model, as a process."""

    name = "rustgpt"
    fields: ClassVar[dict[str, Any]] = {"model": "small"}  # of each request

    def __init__(self, model: str, slots: int = 16, threads: int = 0) -> None:
        command = [sys.executable, "-m", "rustgpt", "serve", model, "--port", "0"]
        command += ["--name", "small", "--slots", str(slots), "--threads", str(threads)]
        self.start(command)
        while not (found := re.search(r"is ready at http://127\.0\.0\.1:(\d+)", self.said())):
            time.sleep(0.1)
        self.port = int(found[1])

    def start(self, command: list[str]) -> None:
        self.log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)

    def said(self) -> str:
        """Return what it has said; it must be running."""
        text = Path(self.log.name).read_text(errors="replace")
        if self.process.poll() is not None:
            raise SystemExit(f"{self.name} has ended:\n{text}")
        return text

    def status(self, name: str) -> int:
        """Return a number of the process, such as VmRSS in KiB, from Linux' /proc."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s*(\d+)", text)[1])

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)

    def get(self, path: str) -> tuple[int, str]:
        connection = self.connect()
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()

    def end(self) -> None:
        self.process.terminate()
        print(f"{self.name}: exit status after SIGTERM: {self.process.wait(60)}")
        failed = Path(self.log.name).read_text(errors="replace").count("Traceback")
        print(f"{self.name}: failures in the log: {failed}")


class LlamaServer(Server):
    """llama.cpp's server of the same model."""

    name = "llama.cpp"
    fields: ClassVar[dict[str, Any]] = {"ignore_eos": True, "cache_prompt": False}

    def __init__(self, program: str, model: str, threads: int, context: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        room = CLIENTS * context
        flags: dict[str, Any] = {"-m": model, "--port": self.port, "-t": threads, "-np": CLIENTS}
        flags |= {"-c": room, "--cache-ram": 0}
        command = [program, *(str(one) for flag in flags.items() for one in flag)]
        self.start([*command, "--no-kv-unified", "--no-webui"])
        while not self.is_ready():
            self.said()
            time.sleep(0.1)

    def is_ready(self) -> bool:
        try:
            return self.get("/health")[0] == 200
        except OSError:
            return False


class Streamed(NamedTuple):
    """An answer: the seconds to its first text and to its end; the tokens read and made."""

    first: float
    seconds: float
    read: int
    made: int


def stream(
    server: Server, connection: http.client.HTTPConnection | None = None, **fields: Any
) -> Streamed:
    """Ask for a text, as a stream."""
    body = {**server.fields, "stream": True, "stream_options": {"include_usage": True}, **fields}
    connection = connection or server.connect()
    began = time.perf_counter()
    connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    while not re.search(rb'"text": ?"[^"]|"finish_reason": ?"', line := response.readline()):
        assert line, "it has no end"
    first = time.perf_counter() - began
    *_, usage, end = (event for event in response.read().split(b"\n\n") if event.strip())
    seconds = time.perf_counter() - began
    assert end == b"data: [DONE]", end
    told = json.loads(usage.removeprefix(b"data: "))["usage"]
    return Streamed(first, seconds, told["prompt_tokens"], told["completion_tokens"])


def asked(server: Server, clients: int, each: dict[str, Any], prompts: Iterator[str]) -> Figures:
    """Let so many clients stream at once; return what came of it."""
    texts = [next(prompts) for _ in range(clients)]
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        found = list(threads.map(lambda text: stream(server, prompt=text, **each), texts))
    seconds = time.perf_counter() - began
    made = {one.made for one in found}
    assert made == {each["max_tokens"]}, f"{server.name} has made {made} tokens"
    firsts = [one.first for one in found]
    read = statistics.mean(one.read for one in found)
    return Figures(clients * each["max_tokens"] / seconds, statistics.median(firsts), read)


class Figures(NamedTuple):
    """Tokens made in a second, the seconds to a client's first text, tokens of a prompt."""

    rate: float
    first: float
    read: float

    def __str__(self) -> str:
        return f"{self.rate:8,.1f} tokens/s, first after {self.first * 1000:6,.0f} ms"


def speed(server: Server, args: argparse.Namespace) -> None:
    """One client and eight, in turn."""
    each = {"max_tokens": args.tokens, "temperature": 0, "logit_bias": {"0": -100}}
    ratios = []
    for _ in range(args.rounds):
        one, eight = (asked(server, n, each, repeat(SHORT)) for n in (1, CLIENTS))
        ratios.append(eight.rate / one.rate)
        print(f"1 client: {one}; {CLIENTS} clients: {eight}; ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio: {statistics.median(ratios):.2f}")


def beside(server: Server, args: argparse.Namespace) -> None:
    """One client and eight, of ours and of llama.cpp, in turn."""
    ends = {str(token): -100 for token in LLM.load(args.model).end_ids}
    ours = {"max_tokens": args.tokens, "temperature": 0, "logit_bias": ends}
    theirs = {"max_tokens": args.tokens, "temperature": 0}
    other = LlamaServer(args.llama_server, args.model, args.threads, args.tokens + 512)
    found: dict[tuple[int, str], list[Figures]] = {}
    try:
        for i in range(-1, args.rounds):  # the first round warms up
            for n in (1, CLIENTS):
                for one, each in ((server, ours), (other, theirs))[:: 1 if i % 2 else -1]:
                    prompts = (f"{i} {n} {k}: {LONG}" for k in count())
                    figures = asked(one, n, each, prompts)
                    print(f"{i + 1:2} {n} clients, {one.name:9} {figures}", flush=True)
                    if i >= 0:
                        found.setdefault((n, one.name), []).append(figures)
    finally:
        other.end()
    for (n, name), rounds in found.items():
        print(f"{n} clients, {name:9}", *(spread(rounds, *what) for what in WHAT), sep="; ")
    for n in (1, CLIENTS):
        pairs = list(zip(found[n, server.name], found[n, other.name], strict=True))
        rates = statistics.median(a.rate / b.rate for a, b in pairs)
        firsts = statistics.median(a.first / b.first for a, b in pairs)
        print(
            f"{n} clients: ours makes {rates:.2f} x the tokens/s, first text after {firsts:.2f} x"
        )


WHAT = (
    ("rate", 1, "tokens/s"),
    ("first", 1000, "ms to the first text"),
    ("read", 1, "tokens read"),
)


def spread(rounds: list[Figures], name: str, factor: float, unit: str) -> str:
    """Return the median of one figure of all rounds, and from where to where it goes."""
    values = sorted(getattr(one, name) * factor for one in rounds)
    middle = statistics.median(values)
    return f"{middle:,.1f} ({values[0]:,.1f}-{values[-1]:,.1f}) {unit}"


def fuzz(server: Server, args: argparse.Namespace) -> None:
    """Requests that nobody should send."""
    random_ = random.Random(args.seed)
    requests = (request(random_, server.port) for _ in range(args.count))
    with ThreadPoolExecutor(8) as threads:
        found = Counter(threads.map(lambda data: status_of(data, server.port, 60), requests))
    print("answers by status (0: none):", dict(sorted(found.items())))
    print("5xx:", sum(count for status, count in found.items() if status >= 500))


def leave(server: Server, args: argparse.Namespace) -> None:
    """Clients that leave at random moments."""
    random_ = random.Random(args.seed)
    with ThreadPoolExecutor(16) as threads:  # all memory that is used is then used
        list(threads.map(lambda _: stream(server, prompt=SHORT, max_tokens=60), range(48)))
    before = server.status("VmRSS"), server.status("Threads"), server.files()

    def once(seconds: float) -> None:
        body = {"model": "small", "prompt": "a", "stream": True, "n": 2}
        connection = server.connect()
        headers = {"Content-Type": "application/json"}
        connection.request("POST", PATH, json.dumps(body), headers)
        time.sleep(seconds)
        connection.close()

    with ThreadPoolExecutor(16) as threads:
        for _ in range(5):
            list(threads.map(once, [random_.random() * 0.1 for _ in range(args.count // 5)]))
            print(f"resident: {server.status('VmRSS'):,} KiB", flush=True)
    time.sleep(2)
    after = server.status("VmRSS"), server.status("Threads"), server.files()
    print("resident KiB, threads, files before and after:", before, after)
    print(re.findall(r"(?m)^rustgpt_(?:texts|conn)\w+ \d+", server.get("/metrics")[1]))


def soak(server: Server, args: argparse.Namespace) -> None:
    """64 connections at once; texts of many kinds."""
    began = time.monotonic()
    end = began + args.seconds

    def work(seed: int) -> tuple[int, int]:
        random_, connection = random.Random(seed), server.connect()
        answers = tokens = 0
        while time.monotonic() < end:
            text = "".join(chr(random_.randrange(0x20000, 0x20100)) for _ in range(seed % 40 + 1))
            kind = {"temperature": random_.choice((0, 1)), "seed": random_.randrange(2**40)}
            room = {"max_tokens": random_.randrange(1, 39), "logit_bias": {"0": -100}}
            found = stream(server, connection, prompt=text, **kind, **room)
            answers, tokens = answers + 1, tokens + found.made
        connection.close()
        return answers, tokens

    resident = []
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        works = [threads.submit(work, seed) for seed in range(CONNECTIONS)]
        for i in range(SAMPLES):
            time.sleep(max(0.0, began + (i + 1) * args.seconds / SAMPLES - time.monotonic()))
            resident.append(server.status("VmRSS"))
            print(f"{time.monotonic() - began:6,.0f} s: {resident[-1]:,} KiB, ", end="")
            print(f"{server.files()} files, {server.status('Threads')} threads", flush=True)
        done = [one.result() for one in works]
    print(f"{sum(a for a, _ in done):,} answers, {sum(t for _, t in done):,} tokens")
    third, last = (statistics.median(resident[i : i + SAMPLES // 4]) for i in (10, 15))
    growth = last / third - 1
    is_flat = growth < MOST_GROWTH
    print(
        f"memory is {'' if is_flat else 'NOT '}flat: {third:,.0f} KiB in the third quarter, "
        f"{last:,.0f} in the last, {growth:+.2%} (at most {MOST_GROWTH:+.2%})"
    )
    if not is_flat:
        raise SystemExit(1)


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"speed": speed, "beside": beside, "fuzz": fuzz, "leave": leave, "soak": soak}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--model", help="a model, instead of one that knows nothing")
    parser.add_argument("--sizes", choices=SIZES, default="rustgpt", help="of that one")
    parser.add_argument("--llama-server", metavar="PROGRAM", help="llama.cpp's, for `beside`")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each server")
    parser.add_argument("--count", type=int, default=1000, help="of requests, or of clients")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=64, help="of each text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.part == "beside" and not (args.model and args.llama_server):
        parser.error("`beside` needs --model and --llama-server")
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            LLM(SIZES[args.sizes], tokenizer_of(VOCABULARY[args.sizes])).save(folder)
        slots = CLIENTS if args.part == "beside" else 16
        server = Server(args.model or folder, slots, args.threads)
        try:
            parts[args.part](server, args)
        finally:
            server.end()


if __name__ == "__main__":
    main()
