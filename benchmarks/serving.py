"""Measures the server over HTTP, and tries it: many clients, fuzzed requests, clients that leave.

    python benchmarks/serving.py speed --sizes gpt2
    python benchmarks/serving.py fuzz --count 100000
    python benchmarks/serving.py leave --count 1000
    python benchmarks/serving.py soak --seconds 300

The server is a process of its own. `speed` gives tokens per second of one streaming client and of
eight, in turn; `soak` keeps 64 connections busy and shows how the server's memory goes.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def tokenizer_of(size: int) -> CharTokenizer:
    """Return a tokenizer of so many characters, about."""
    return CharTokenizer.train(["".join(map(chr, range(0x20000, 0x20000 + size - 260)))], None)


class Server:
    """`rustgpt serve` of a model, as a process."""

    def __init__(self, model: str) -> None:
        command = [sys.executable, "-m", "rustgpt", "serve", model, "--port", "0"]
        command += ["--name", "small", "--slots", "16"]
        self.log = tempfile.NamedTemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(command, stderr=self.log)
        self.port = 0
        while not self.port:
            time.sleep(0.1)
            text = Path(self.log.name).read_text()
            assert self.process.poll() is None, text
            found = re.search(r"is ready at http://127\.0\.0\.1:(\d+)", text)
            self.port = int(found[1]) if found else 0

    def status(self, name: str) -> int:
        """Return a number of the process, such as VmRSS in KiB, from Linux' /proc."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s*(\d+)", text)[1])

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def metrics(self) -> str:
        connection = self.connect()
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()

    def end(self) -> None:
        self.process.terminate()
        print(f"exit status after SIGTERM: {self.process.wait(60)}")
        failed = Path(self.log.name).read_text().count("Traceback")
        print(f"failures in the log: {failed}")


def stream(
    server: Server, tokens: int, seed: int = 0, connection: http.client.HTTPConnection | None = None
) -> tuple[float, float]:
    """Ask for so many tokens; return the seconds to the first one, and of all."""
    body = {
        "model": "small", "prompt": "\U00020000\U00020001", "max_tokens": tokens, "stream": True,
        "seed": seed, "temperature": 0, "logit_bias": {"0": -100},
    }  # fmt: skip
    connection = connection or server.connect()
    began = time.perf_counter()
    connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.readline()
    first = time.perf_counter() - began
    assert response.read().endswith(b"data: [DONE]\n\n")
    return first, time.perf_counter() - began


def speed(server: Server, args: argparse.Namespace) -> None:
    """One client and eight, in turn."""
    ratios = []
    for _ in range(args.rounds):
        first, alone = stream(server, args.tokens)
        began = time.perf_counter()
        with ThreadPoolExecutor(8) as threads:
            firsts = [
                one for one, _ in threads.map(lambda i: stream(server, args.tokens, i), range(8))
            ]
        together = time.perf_counter() - began
        one, eight = args.tokens / alone, 8 * args.tokens / together
        ratios.append(eight / one)
        print(
            f"1 client: {one:,.0f} tokens/s, first {first * 1000:.0f} ms; 8 clients: "
            f"{eight:,.0f} tokens/s, first {max(firsts) * 1000:.0f} ms; ratio {ratios[-1]:.2f}"
        )
    print(f"median ratio: {statistics.median(ratios):.2f}")


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
        list(threads.map(lambda i: stream(server, 60, i), range(48)))
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
    print(re.findall(r"(?m)^rustgpt_(?:texts|conn)\w+ \d+", server.metrics()))


def soak(server: Server, args: argparse.Namespace) -> None:
    """64 connections at once."""
    end = time.monotonic() + args.seconds

    def work(seed: int) -> int:
        done, connection = 0, server.connect()
        while time.monotonic() < end:
            stream(server, 32, seed, connection)
            done += 1
        return done

    with ThreadPoolExecutor(64) as threads:
        work_ = [threads.submit(work, i) for i in range(64)]
        while time.monotonic() < end:
            time.sleep(min(20, args.seconds / 10))
            print(f"resident: {server.status('VmRSS'):,} KiB", flush=True)
        print("answers:", sum(one.result() for one in work_))


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"speed": speed, "fuzz": fuzz, "leave": leave, "soak": soak}
    parser.add_argument("part", choices=parts)
    parser.add_argument("--model", help="a model's folder, instead of one that knows nothing")
    parser.add_argument("--sizes", choices=SIZES, default="rustgpt")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            LLM(SIZES[args.sizes], tokenizer_of(VOCABULARY[args.sizes])).save(folder)
        server = Server(args.model or folder)
        try:
            parts[args.part](server, args)
        finally:
            server.end()


if __name__ == "__main__":
    main()
