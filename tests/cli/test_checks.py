import os
import sys

import pytest

import rustgpt
from rustgpt.cli import checks
from rustgpt.config import ModelConfig
from rustgpt.errors import ConfigError

from .conftest import one_line


@pytest.mark.parametrize("name", [".DS_Store", ".gitkeep", "Thumbs.db", "model.safetensors.new"])
def test_a_folder_with_a_hidden_file_is_empty(inside, tmp_path, small, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).touch()  # with .new: a first save was killed
    checks.check_folder(str(tmp_path / "out"), overwrite=False)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [name]
    assert inside("train", *small, "--out", "out").status == 0
    rustgpt.LLM.load(tmp_path / "out")


def test_a_model_is_looked_at_and_left_alone(model):
    checks.check_folder(model, overwrite=True)
    with pytest.raises(ConfigError, match="holds a model already"):
        checks.check_folder(model, overwrite=False)
    rustgpt.LLM.load(model)


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")
@pytest.mark.parametrize("out", ["link", "link/model"])
def test_a_link_to_nowhere_is_refused(inside, tmp_path, small, out):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at-all")
    words = ["is a link to", "nowhere/at-all", "mend the link"] if out == "link" else []
    one_line(inside("train", *small, "--out", out), 2, f"'{out}'", "--out", *words)
    (tmp_path / "there").mkdir()
    (tmp_path / "good").symlink_to(tmp_path / "there")
    assert inside("train", *small, "--out", "good").status == 0
    rustgpt.LLM.load(tmp_path / "there")


def test_a_folder_with_other_things_is_refused_and_left_alone(inside, tmp_path, small):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "gpt2"}')
    for out in ("mine", "."):
        one_line(inside("train", *small, "--out", out), 2, f"'{out}'", "no sound model", "--out")
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["config.json"]


@pytest.mark.parametrize("out", ["facts.json", "facts.json/model", "x" * 300])
def test_a_file_or_an_impossible_name_is_refused(inside, small, out):
    one_line(inside(*small, "--out", out), 2, "cannot save a model", "--out")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do all")
def test_a_folder_that_cannot_be_written_is_refused(inside, tmp_path, small):
    (tmp_path / "shut").mkdir(mode=0o500)
    one_line(inside("train", *small, "--out", "shut"), 2, "'shut'", "Permission denied")
    one_line(inside("train", *small, "--out", "shut/model"), 2, "Permission denied")


def test_a_model_too_large_for_memory_is_refused(inside, tmp_path, small):
    sizes = ("--embedding-dim", "1048576", "--hidden-dim", "1048576", "--n-layers", "100")
    one_line(inside("train", *small, *sizes), 2, "GiB", "choose smaller sizes")
    assert not (tmp_path / "rustgpt-model").exists()


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the size of memory is not known")
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("projection", [True, False])
def test_the_estimate_is_close(monkeypatch, tied, projection):
    config = ModelConfig(tie_embeddings=tied, attention_projection=projection, max_seq_len=300)
    tokenizer = rustgpt.WordTokenizer.train(["some words"])
    there = rustgpt.LLM(config, tokenizer).n_parameters * 4 * 4
    monkeypatch.setattr(os, "sysconf", lambda name: there if name == "SC_PAGE_SIZE" else 1)
    checks.check_memory(config, tokenizer.vocab_size)
    there = int(there * 0.98)
    with pytest.raises(ConfigError, match="parameters needs"):
        checks.check_memory(config, tokenizer.vocab_size)


def test_where_the_size_of_memory_is_not_known_nothing_is_refused(monkeypatch):
    monkeypatch.delattr(os, "sysconf", raising=False)
    checks.check_memory(ModelConfig(embedding_dim=2**20), 10**9)
