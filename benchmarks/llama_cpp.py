"""Owns the comparison with llama.cpp: the same tokens of a text, and the same greedy continuation.

`python benchmarks/llama_cpp.py MODEL.gguf --server llama-server`

llama.cpp answers prompts greedily; along its tokens, ours are asked for the next one each time.
Where all of an answer's are our best too, the greedy texts are the same. With `--write float32`
the model is read, written by us, and compared as llama.cpp reads that.
"""

import argparse
import json
import random
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rustgpt import LLM, formats
from rustgpt.text.dialogue import Message

QUESTIONS = """How do mountains form?
What is the capital of France?
Write a short story about a dog who finds a key.
Explain photosynthesis to a child.
List five healthy breakfast ideas.
What is the difference between a virus and a bacterium?
Write a Python function that reverses a string.
Who wrote Romeo and Juliet, and what is it about?
Give me three tips for learning a new language.
Why is the sky blue?
Summarise the history of the Roman Empire.
How does a bicycle stay upright?
Write a poem about the sea.
What should I do when I cannot sleep?
Describe how a computer stores numbers.
What is gravity?
Write an email asking a colleague for a meeting on Monday.
How do I cook rice?
What are the planets of the solar system?
Tell me about the life of Marie Curie.""".splitlines()
# Of which texts are made that tokenizers find hard.
PARTS = [
    "the sun", " hello", "Hello", "'s", "'LL", "don't", "12", "3", "1234567", "½", "²", "٣",
    "世界", "你好，", "日本語", "🙂", "👩‍👩‍👧", "é", "мир", " Привет", "עברית", "ไทย", "Ⅷ", "ﬁ",
    "\u0301", " ", "  ", "\n", "\n\n", "\r\n", "\t", "   \n", "\u00a0", "\u3000", "!", "...", "(x)",
    "#1",
]  # fmt: skip


class Server:
    """A running llama-server."""

    def __init__(self, address: str) -> None:
        self.address = address

    def ask(self, path: str, **content: Any) -> Any:
        """Return its answer."""
        data = json.dumps(content).encode() if content else None
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, headers)
        with urllib.request.urlopen(request, timeout=600) as answer:
            return json.load(answer)


@contextmanager
def serving(program: str, model: Path, threads: int) -> Iterator[Server]:
    """Run llama-server with a model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [program, "-m", model, "--port", port, "-t", threads, "-c", 2048, "-np", 1]
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    server = Server(f"http://127.0.0.1:{port}")
    try:
        for _ in range(600):
            if process.poll() is not None:
                raise SystemExit(f"{program} ended with {process.returncode}")
            try:
                server.ask("/health")
                break
            except OSError:
                time.sleep(0.2)
        yield server
    finally:
        process.terminate()
        process.wait()


def same_ids(model: LLM, server: Server, n: int) -> int:
    """How many of n random texts have the same tokens."""
    rng = random.Random(0)
    texts = ["".join(rng.choices(PARTS, k=rng.randint(1, 25))) for _ in range(n)]
    return sum(
        server.ask("/tokenize", content=text, add_special=True, parse_special=False)["tokens"]
        == model.prompt_ids(text)
        for text in texts
    )


def along(model: LLM, server: Server, prompt: list[int], length: int) -> np.ndarray[Any, Any]:
    """By how much our best logit is above that of each token that llama.cpp chose."""
    answer = server.ask(
        "/completion", prompt=prompt, n_predict=length, temperature=0.0, return_tokens=True,
        cache_prompt=False,
    )  # fmt: skip
    tokens = np.array(answer["tokens"])
    logits = model.logits([*prompt, *tokens.tolist()])[len(prompt) - 1 : -1]
    return logits.max(axis=1) - logits[np.arange(len(tokens)), tokens]


def compared(model: LLM, server: Server, length: int) -> dict[str, Any]:
    """Return what is the same along the answers to all questions."""
    gaps = []
    for question in QUESTIONS:
        if model.config.chat_template == "rustgpt":
            prompt = model.prompt_ids(question)
        else:
            prompt = model.text_format.chat_prompt([Message("user", question)])
        gaps.append(along(model, server, prompt, length))
        print(f"{question:<60} {len(gaps[-1]):4} tokens, {(gaps[-1] > 0).sum()} others", flush=True)
    every = np.concatenate(gaps)
    return {
        "answers": len(gaps), "same_answers": sum(bool((gap == 0).all()) for gap in gaps),
        "tokens": len(every), "same": float((every == 0).mean()),
        "largest_gap": float(every.max()), "above_0.1": int((every > 0.1).sum()),
    }  # fmt: skip


def main() -> None:
    """Compare, and print what is the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a model, in any format that rustgpt reads")
    parser.add_argument("--server", default="llama-server", help="the program of llama.cpp")
    parser.add_argument("--tokens", type=int, default=400, help="the most of an answer")
    parser.add_argument("--texts", type=int, default=2000, help="to compare tokenizers with")
    parser.add_argument("--write", metavar="DTYPE", help="write it first, in float32 or another")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    path = Path(args.model)
    with tempfile.TemporaryDirectory() as folder:
        if args.write:
            path = Path(folder) / "model.gguf"
            formats.export(LLM.load(args.model), path, "gguf", args.write)
        model = LLM.load(path)
        with serving(args.server, path, args.threads) as server:
            ids = same_ids(model, server, args.texts)
            found = compared(model, server, args.tokens)
    print(json.dumps({"same_ids": ids, "texts": args.texts, **found}))


if __name__ == "__main__":
    main()
