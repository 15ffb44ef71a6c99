import builtins
import json
import platform
import re

import pytest
import threadpoolctl

import rustgpt
from rustgpt import backend
from rustgpt.cli import info
from rustgpt.layers.cache import Cache
from rustgpt.text.char_tokenizer import CharTokenizer

from .conftest import one_line


def test_machine(process):
    done = process("info")
    assert (done.status, done.err) == (0, "")
    facts = dict(line.split(None, 1) for line in done.out.splitlines() if line[:5] != "instr")
    assert facts["rustgpt"] == rustgpt.__version__
    assert facts["python"] == platform.python_version()
    assert facts["backend"] in backend.BACKENDS
    assert int(facts["threads"]) > 0
    assert facts["bfloat16"] in ("yes", "no")


def test_machine_as_json(inside):
    done = inside("info", "--json")
    facts = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert facts["backend"] == backend.backend_name()
    assert facts["instruction_set"] in facts["available"]
    assert facts["bfloat16"] is backend.has_bfloat16()
    assert {*facts["blas"]} == {"name", "version", "threads"}
    assert facts["processor"]


def test_reference_kernels_have_no_instruction_set(process):
    facts = json.loads(process("info", "--json", env={"RUSTGPT_BACKEND": "reference"}).out)
    assert (facts["backend"], facts["instruction_set"]) == ("reference", None)
    assert facts["available"] == []


@pytest.mark.parametrize("name", ["RUSTGPT_BACKEND", "RUSTGPT_SIMD"])
def test_wrong_environment(process, name):
    one_line(process("info", env={name: "x\x1b"}), 2, "'x\\x1b'")


def test_text_of_what_is_not_there(inside, monkeypatch):
    monkeypatch.setattr(backend, "backend_name", lambda: "reference")
    monkeypatch.setattr(threadpoolctl, "threadpool_info", list)
    text = inside("info").out
    assert "available        -\n" in text
    assert "blas             name -, version -, threads -\n" in text


def test_processor_without_proc(monkeypatch):
    def refuse(*_args, **_more):
        raise FileNotFoundError

    monkeypatch.setattr(info.Path, "read_text", refuse)
    monkeypatch.setattr(builtins, "open", refuse)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "toaster")
    assert info._processor() == "toaster"


def test_model(inside, model):
    done = inside("info", model)
    assert (done.status, done.err) == (0, "")
    loaded = rustgpt.LLM.load(model)
    assert loaded.describe() in done.out
    assert f"Vocabulary: {loaded.tokenizer.vocab_size} tokens" in done.out
    assert re.search(r"^embedding_dim +16$", done.out, re.MULTILINE)


def test_model_as_json(process, model):
    facts = json.loads(process("info", model, "--json").out)
    loaded = rustgpt.LLM.load(model)
    assert facts["parameters"] == loaded.n_parameters
    assert facts["vocabulary"] == loaded.tokenizer.vocab_size
    assert facts["config"] == loaded.config.to_dict()
    shapes = {name: list(value.shape) for name, value in loaded.named_parameters().items()}
    assert facts["tensors"] == shapes


@pytest.mark.parametrize("changes", [{}, {"n_heads": 6, "n_kv_heads": 2, "positions": "rotary"}])
def test_the_memory_of_a_text_is_what_its_cache_takes(inside, tmp_path, changes):
    config = rustgpt.ModelConfig(embedding_dim=24, hidden_dim=8, n_layers=2, **changes)
    model = rustgpt.LLM(config, CharTokenizer("abc"))
    model.save(tmp_path / "m")
    facts = json.loads(inside("info", str(tmp_path / "m"), "--json").out)
    cache = Cache(model.max_seq_len)
    model.decode([1, 2], cache)
    assert facts["cache_bytes"] == sum(rows.nbytes for rows in cache._rows.values())


def test_no_model(inside):
    one_line(inside("info", "nowhere"), 1, "nowhere")
