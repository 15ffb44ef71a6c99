import sys

import pytest

from rustgpt.errors import CheckpointError, TokenizerError
from rustgpt.extras import extra


@pytest.mark.parametrize("error", [CheckpointError, TokenizerError])
def test_a_package_that_is_missing_is_named_with_its_extra(error, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(error, match=r"^this file needs the package gguf: .*'rustgpt\[more\]'$"):
        extra("gguf", "quants", "more", "this file", error)


def test_a_folder_in_the_way_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "in_the_way").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TokenizerError, match="needs the package in_the_way"):
        extra("in_the_way", "Tokenizer", "bpe", "BPE", TokenizerError)


def test_a_package_that_is_there_is_returned():
    assert extra("json", "loads", "bpe", "BPE", TokenizerError).loads("1") == 1
