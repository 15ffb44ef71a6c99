"""Owns a small share of the damage of `mutants.py`: no file of others gives any other error."""

from pathlib import Path

import pytest

from .mutants import run

pytest.importorskip("tokenizers")

KINDS = [
    "gguf", "llama", "config", "safetensors", "shards", "tokenizer", "characters", "settings",
    "vocabulary", "scores", "sentence",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that were damaged
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_gives_an_error_that_a_user_can_read(kind: str, tmp_path: Path) -> None:
    ends = run(kind, 200, 1, tmp_path, print)
    assert ends["loaded"] < 150
    assert ends["CheckpointError"] + ends["TokenizerError"] > 50
