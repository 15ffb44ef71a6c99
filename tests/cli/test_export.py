"""Owns the tests of `rustgpt export`, and of the commands that read what it writes."""

import json
from pathlib import Path

import numpy as np
import pytest

from rustgpt import LLM, ModelConfig
from rustgpt.text.char_tokenizer import CharTokenizer

from .conftest import start


def run(cwd: Path, *args: str, status: int = 0, given: bytes = b"") -> tuple[str, str]:
    """Run a command as a process; return what it has written to both streams."""
    process = start(*args, cwd=cwd)
    out, err = process.communicate(given, timeout=120)
    assert process.returncode == status, err.decode()
    return out.decode(), err.decode()


@pytest.fixture
def model(tmp_path: Path) -> LLM:
    """A small model, saved in "my-model"."""
    config = ModelConfig(embedding_dim=16, hidden_dim=16, n_layers=1, n_heads=2, max_seq_len=32)
    made = LLM(config, CharTokenizer(" .:?ABTUabehinrstu"))
    made.parameters += 0.1 * np.random.default_rng(1).standard_normal(made.n_parameters)
    made.save(tmp_path / "my-model")
    return made


def test_a_model_is_exported_and_read_by_every_command(model: LLM, tmp_path: Path) -> None:
    out, err = run(tmp_path, "export", "hf", "my-model", "hf")
    assert out.startswith("The model is written in hf: a folder of Hugging Face, which transform")
    assert not err
    facts = json.loads(run(tmp_path, "info", "hf", "--json")[0])
    assert facts["vocabulary"] == model.tokenizer.vocab_size
    text, _ = run(tmp_path, "generate", "hf", "The sun", "--max-new-tokens", "8")
    assert text == f"The sun{model.generate('The sun', 8)}\n"
    ids, _ = run(tmp_path, "tokenizer", "encode", "hf", "The sun é")
    assert [*map(int, ids.split())] == model.tokenizer.encode("The sun é")
    (tmp_path / "new.txt").write_text("Tea is hot.\n" * 20)
    small = ("--embedding-dim", "16", "--n-layers", "1", "--max-steps", "2", "--out", "new")
    run(tmp_path, "train", "new.txt", "--tokenizer", "hf", *small)
    assert LLM.load(tmp_path / "new").tokenizer.to_json() == model.tokenizer.to_json()
    answer, _ = run(tmp_path, "chat", "hf", "--max-new-tokens", "4", given=b"Tea?\n")
    assert model.chat(max_new_tokens=4).send("Tea?") in answer


def test_what_is_there_is_left_alone_without_being_asked(model: LLM, tmp_path: Path) -> None:
    run(tmp_path, "export", "hf", "my-model", "hf")
    before = (tmp_path / "hf" / "model.safetensors").read_bytes()
    half = ("export", "hf", "my-model", "hf", "--dtype", "bfloat16")
    _, err = run(tmp_path, *half, status=1)
    assert err.startswith("rustgpt: error: hf holds a model already")
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == before
    run(tmp_path, *half, "--overwrite")
    assert (tmp_path / "hf" / "model.safetensors").stat().st_size < 0.6 * len(before)
    _, err = run(tmp_path, "export", "hf", "hf", "my-model", "--overwrite", status=1)
    assert err.startswith("rustgpt: error: my-model holds a model of another format")
    assert LLM.load(tmp_path / "my-model").config == model.config


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("onnx", "my-model", "out"), 2, "invalid choice: 'onnx'"),
        (("hf", "my-model"), 2, "DESTINATION"),
        (("hf", "nowhere", "out"), 1, "there is no model in nowhere"),
        (("hf", "my-model", "out", "--dtype", "int8"), 2, "invalid choice: 'int8'"),
        (("hf", "my-model", ""), 2, "a file or folder is needed"),
    ],
)
def test_mistakes_are_one_line(
    model: LLM, args: tuple[str, ...], status: int, message: str, tmp_path: Path
) -> None:
    _, err = run(tmp_path, "export", *args, status=status)
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_model_of_others_is_trained_on(model: LLM, tmp_path: Path) -> None:
    run(tmp_path, "export", "hf", "my-model", "hf")
    (tmp_path / "new.txt").write_text("Tea is hot.\n" * 20)
    (tmp_path / "chat.json").write_text('["User: Is tea hot? Assistant: It is </s>"]')
    out, _ = run(
        tmp_path, "train", "--init", "hf", "--pretrain", "new.txt", "--chat", "chat.json",
        "--out", "tuned", "--max-steps", "4",
    )  # fmt: skip
    assert "The model is saved in tuned" in out
    tuned = LLM.load(tmp_path / "tuned")
    assert tuned.tokenizer.to_json() == model.tokenizer.to_json()
    assert tuned.config.norm == "post"
    _, err = run(
        tmp_path, "train", "new.txt", "--init", "hf", "--replay", "0.5", "--out", "x", status=2
    )
    assert "it is not known what the model in hf was trained on" in err
