"""Owns the tests of `rustgpt.formats`: a model is opened by what lies at its path."""

import pytest

from rustgpt import LLM, ModelConfig, formats
from rustgpt.errors import CheckpointError
from rustgpt.text.char_tokenizer import CharTokenizer


def test_a_folder_is_opened_by_its_config(gpt2, tmp_path):
    folder = gpt2()
    assert formats.kind_of(folder) == formats.HUGGING_FACE
    model = LLM(ModelConfig(embedding_dim=12, n_heads=3), CharTokenizer("ab"))
    model.save(tmp_path / "ours")
    assert formats.kind_of(tmp_path / "ours") == formats.RUSTGPT
    for path in (folder, str(folder), tmp_path / "ours"):
        with formats.open_model(path) as found:
            assert found.folder in (folder, tmp_path / "ours")
            assert LLM.from_saved(found).n_parameters == LLM.load(path).n_parameters


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none", None, "there is no model in .*none"),
        ("empty", b"", r"config\.json is damaged"),
        ("list", b"[]", "is not of rustgpt"),
        ("other", b"{}", "is not of rustgpt"),
        ("both", b'{"format": "rustgpt", "model_type": "gpt2"}', "is damaged or was edited"),
    ],
)
def test_what_is_no_model_is_told(name, content, message, tmp_path):
    folder = tmp_path / name
    if content is not None:
        folder.mkdir()
        (folder / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=message.replace("damaged", "(damaged|edited)")):
        LLM.load(folder)


def test_a_file_is_no_folder(tmp_path):
    for name, message in (("m.bin", "is a pickle"), ("m.txt", "nor a GGUF file")):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(CheckpointError, match=message):
            LLM.load(tmp_path / name)


@pytest.mark.parametrize("path", ["", "  ", 3, None])
def test_a_path_must_have_a_name(path):
    with pytest.raises(CheckpointError, match="a folder must"):
        LLM.load(path)
