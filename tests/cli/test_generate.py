import json
import shutil
from pathlib import Path

import pytest

import rustgpt

from .conftest import one_line


def test_prompt_and_continuation(process, model):
    done = process("generate", model, "The sun")
    made = rustgpt.LLM.load(model).generate("The sun")
    assert made
    assert done == (0, f"The sun{made}\n", "")


def test_json(inside, model):
    done = inside("generate", model, "雨 \x1b", "--json", "--max-new-tokens", "3")
    made = rustgpt.LLM.load(model).generate("雨 \x1b", max_new_tokens=3)
    assert json.loads(done.out) == {"prompt": "雨 \x1b", "continuation": made}
    assert done.out.isascii()
    assert done.out[:-1].isprintable()


def test_the_seed_decides(inside, model):
    def generate(seed: str) -> str:
        flags = ("--temperature", "5", "--seed", seed, "--max-new-tokens", "20")
        return inside("generate", model, "The", *flags).out

    assert generate("1") == generate("1")
    assert generate("1") != generate("2")


def test_max_new_tokens(inside, model):
    short = inside("generate", model, "The sun", "--max-new-tokens", "1").out
    assert inside("generate", model, "The sun").out.startswith(short.rstrip("\n"))


@pytest.mark.parametrize("prompt", ["", " ", "</s>", "<0x41>", "\udcff", "\x1b[31m", "é" * 3])
def test_any_prompt(inside, model, prompt):
    done = inside("generate", model, prompt, "--max-new-tokens", "4")
    assert (done.status, done.err) == (0, "")
    assert "\x1b" not in done.out


def test_a_prompt_longer_than_the_context_is_told(inside, model):
    done = inside("generate", model, "sun " * 200, "--max-new-tokens", "4")
    assert done.status == 0
    assert done.err.startswith("rustgpt: the text has ")
    assert "the last 80 of" in done.err


def test_bytes_that_are_not_utf8(process, model):
    done = process("generate", model, b"sun \xff", "--max-new-tokens", "2")
    assert done.status == 0
    assert done.out.startswith("sun \ufffd")


def test_an_encoding_without_the_characters(process, model):
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = process("generate", model, "雨", "--max-new-tokens", "1", env=env)
    assert done.status == 0
    assert done.out.startswith("?")


def test_damaged_models(inside, tmp_path, model):
    one_line(inside("generate", "nowhere", "text"), 1, "nowhere", "rustgpt train")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        copy = Path(shutil.copytree(model, tmp_path / name))
        content = (copy / name).read_bytes()
        for damaged in (content[:-2], b"", content[:100] + b"\xff" + content[101:]):
            (copy / name).write_bytes(damaged)
            one_line(inside("generate", str(copy), "text"), 1, name)
        (copy / name).unlink()
        one_line(inside("generate", str(copy), "text"), 1, name)
