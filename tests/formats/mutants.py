"""Owns damaged models of other programs: what is wrong in them gives two kinds of errors, no other.

`python -m tests.formats.mutants --n 100000` damages each file so often; the tests do so with few.
"""

import argparse
import copy
import json
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from rustgpt import LLM, ModelConfig
from rustgpt.errors import CheckpointError, TokenizerError
from rustgpt.formats import export
from rustgpt.formats.safetensors_file import INDEX, SINGLE
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.library_json import beginning_json
from rustgpt.text.sentence_tokenizer import SentenceTokenizer

from ..text.test_sentence_tokenizer import all_pairs, llama2
from .conftest import V, gpt2_config, gpt2_tensors, llama_config, llama_tensors, write

# What stands in the place of something else.
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 255, 2**31, 2**63, 2**64, 10**40, 0.0, -0.5, 1e308,
    float("nan"), float("inf"), "", " ", "x", "gelu", "relu", "F16", "BF16", "</s>", "../x",
    "\ud800", "😀", [], {},
    [0], [1, 2], [[]], {"a": 1}, ["x"], "a" * 5000, [[[[[[]]]]]],
]  # fmt: skip
BYTES = [b"\0", b"\xff", b"\x80", b'"', b"{", b"}", b"[", b"]", b":", b",", b"9", b"-", b"\\", b"e"]
NUMBERS = [0, 1, 2, 3, 5, 8, 9, 12, 31, 255, 2**16, 2**31, 2**40, 2**63, 2**64 - 1]
# Settings of models in Llama's form, and of Llama 3.1's positions.
LLAMA: dict[str, Any] = {
    "embedding_dim": 32, "hidden_dim": 64, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2,
    "norm": "pre", "norm_type": "rms_norm", "positions": "rotary", "activation": "swiglu",
    "feed_forward_bias": False, "output_bias": False, "max_seq_len": 40,
}  # fmt: skip
LLAMA3 = {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original_max_seq_len": 8192}
LARGEST_GROWTH = 300  # MB of memory, over all mutants


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, lost, doubled, put in; or the rest cut off."""
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 8, 64))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at] + data[at + length :]
        elif kind == 2:
            data = data[:at] + data[at : at + length] + data[at:]
        elif kind == 3:
            data = data[:at] + rng.choice(BYTES) * rng.choice((1, 1, length)) + data[at:]
        elif kind == 4:
            data = data[:at] + rng.choice(BYTES) + data[at + 1 :]
        else:
            data = data[:at]
    return data


def damaged_json(content: Any, rng: random.Random) -> Any:
    """Some values or names changed, lost, or moved."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holders = _holders(content)
        if not holders:
            break
        holder = rng.choice(holders)
        keys = [*holder] if isinstance(holder, dict) else [*range(len(holder))]
        key = rng.choice(keys)
        kind = rng.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder[rng.choice(["x", "", "F32", *keys])] = holder.pop(key)
        elif kind == 2:
            holder[key] = copy.deepcopy(holder[rng.choice(keys)])
        elif kind == 3 and type(holder[key]) is int:
            holder[key] += rng.choice((-1, 1, 2, 1000, -1000, 2**40))
        else:
            holder[key] = copy.deepcopy(rng.choice(VALUES))
    return content


def _holders(content: Any) -> list[Any]:
    """All objects and lists that are not empty."""
    found, left = [], [content]
    while left:
        value = left.pop()
        if isinstance(value, (dict, list)) and value:
            found.append(value)
            left += value.values() if isinstance(value, dict) else value
    return found


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Damage to a file of JSON, or to a safetensors file."""
    if rng.random() < 0.4:
        return damaged_bytes(data, rng)
    if data[:4] == b"GGUF":
        return _damaged_header(data, rng)
    if data[:1] == b"{":
        return json.dumps(damaged_json(json.loads(data), rng)).encode()
    if data[:8].endswith(b"\0\0"):
        length = int.from_bytes(data[:8], "little")
        header = json.dumps(damaged_json(json.loads(data[8 : 8 + length]), rng)).encode()
        size = (
            len(header) if rng.random() < 0.9 else rng.choice((0, 7, 10**8 + 1, 2**63, 2**64 - 1))
        )
        return size.to_bytes(8, "little") + header + data[8 + length :]
    return damaged_bytes(data, rng)


def _damaged_header(data: bytes, rng: random.Random) -> bytes:
    """Damage to numbers and names in the first part of a GGUF file, which tells of the rest."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.5:
            at, length = rng.randrange(4, 12_000), rng.choice((4, 8))
        else:  # of an entry: behind its name
            at, length = found.find(b".", rng.randrange(6000)), rng.choice((1, 4, 8))
            at += rng.randrange(40)
        number = rng.choice(NUMBERS)
        found[at : at + length] = number.to_bytes(8, "little")[:length]
    return bytes(found)


def folders(root: Path) -> dict[str, tuple[Path, list[str]]]:
    """Sound folders, each with the files that are to be damaged in it."""
    tensors = gpt2_tensors()
    bpe = BpeTokenizer.train(["the sun and the moon and the sea"] * 9, V)
    content = bpe.library_content() | {"post_processor": beginning_json("</s>", 0)}
    more = {
        "tokenizer_config": {
            "bos_token": "</s>", "eos_token": {"content": "</s>"}, "add_bos_token": True,
        },
        "special_tokens_map": {"eos_token": "</s>", "pad_token": {"content": "</s>"}},
        "generation_config": {"eos_token_id": [0, 3], "bos_token_id": 0},
    }  # fmt: skip
    char = write(root / "char", gpt2_config(n_layer=1), _one_layer(tensors))
    whole = write(
        root / "bpe", gpt2_config(n_layer=1), _one_layer(tensors), tokenizer=content, **more
    )
    model = content["model"]
    parts = write(
        root / "parts", gpt2_config(n_layer=1), _one_layer(tensors), tokenizer=None,
        vocab=model["vocab"], tokenizer_config={"eos_token": "</s>"},
    )  # fmt: skip
    merges = "\n".join(" ".join(merge) for merge in model["merges"])
    (parts / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    shards = write(root / "shards", gpt2_config(n_layer=1), {})
    (shards / SINGLE).unlink()
    names = sorted(_one_layer(tensors))
    for i in range(2):
        save_file({n: tensors[n] for n in names[i::2]}, shards / f"m-{i}.safetensors")
    places = {name: f"m-{i}.safetensors" for i in range(2) for name in names[i::2]}
    (shards / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    llama = write(root / "llama", llama_config(), llama_tensors())
    (root / "gguf").mkdir()
    for dtype, changes in (("q8_0", {}), ("float16", LLAMA3)):
        export(
            LLM(ModelConfig(**LLAMA, **changes), bpe), root / f"gguf/{dtype}.gguf", "gguf", dtype
        )
    export(LLM.load(whole), root / "gguf" / "gpt2.gguf", "gguf", "float32")
    other = LLM(ModelConfig(**LLAMA), SentenceTokenizer(all_pairs(llama2()), "</s>"))
    export(other, root / "gguf" / "sentence.gguf", "gguf", "float16")
    export(other, root / "sentence")
    return {
        "gguf": (root / "gguf", ["q8_0.gguf", "float16.gguf", "gpt2.gguf"]),
        "scores": (root / "gguf", ["sentence.gguf"]),
        "sentence": (root / "sentence", ["tokenizer.json"]),
        "llama": (llama, ["config.json"]),
        "config": (char, ["config.json"]),
        "safetensors": (char, [SINGLE]),
        "shards": (shards, [INDEX, "m-0.safetensors"]),
        "tokenizer": (whole, ["tokenizer.json"]),
        "characters": (char, ["tokenizer.json"]),
        "settings": (whole, [f"{name}.json" for name in more]),
        "vocabulary": (parts, ["vocab.json", "merges.txt", "tokenizer_config.json"]),
    }


def _one_layer(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tensors.items() if ".h.1." not in name}


def run(kind: str, n: int, seed: int, root: Path, tell: Callable[[str], None]) -> Counter[str]:
    """Damage a file n times; return how often each kind of end came."""
    folder, names = folders(root)[kind]
    rng = random.Random(f"{kind} {seed}")
    for name in names:
        _end(folder, name)
    sound = {name: (folder / name).read_bytes() for name in names}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ends: Counter[str] = Counter()
    for i in range(n):
        name = names[i % len(names)]
        data = damaged(sound[name], rng)
        (folder / name).write_bytes(data)
        began = time.process_time()
        try:
            ends[_end(folder, name)] += 1
        except BaseException:
            (root / "culprit").write_bytes(data)
            tell(f"{kind}: mutant {i} of {name} is in {root / 'culprit'}")
            raise
        assert time.process_time() - began < 10, (kind, i)
        (folder / name).write_bytes(sound[name])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    assert grown < LARGEST_GROWTH, f"{kind}: {grown} MB"
    return ends


def _end(folder: Path, name: str) -> str:
    try:
        model = LLM.load(folder / name if name.endswith(".gguf") else folder)
    except (CheckpointError, TokenizerError) as error:
        message = str(error)
        assert message.isprintable(), ascii(message)
        assert len(message) < 1000, message[:300]
        return type(error).__name__
    ids = model.prompt_ids("the sun é")
    assert all(0 <= i < model.tokenizer.vocab_size for i in ids)
    model.tokenizer.decode(ids)
    model.logits(ids[: model.max_seq_len])
    return "loaded"


def main() -> None:
    """Damage each file as often as is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=1000, help="mutants of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", help="only these")
    args = parser.parse_args()
    for kind in args.kinds or folders(Path(tempfile.mkdtemp())):
        began = time.perf_counter()
        ends = run(kind, args.n, args.seed, Path(tempfile.mkdtemp()), print)
        print(f"{kind:<12} {dict(ends)} {time.perf_counter() - began:,.0f} s", flush=True)


if __name__ == "__main__":
    main()
