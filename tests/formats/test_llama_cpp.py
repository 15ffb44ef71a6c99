"""Owns the comparison with llama.cpp where its server is installed: what we write, it continues."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rustgpt import LLM, ModelConfig
from rustgpt.text.bpe_tokenizer import BpeTokenizer
from rustgpt.text.sentence_tokenizer import SentenceTokenizer

from ..text.test_sentence_tokenizer import all_pairs, llama2
from .mutants import LLAMA

pytest.importorskip("tokenizers")
pytest.importorskip("gguf")
SERVER = shutil.which("llama-server")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "llama_cpp.py"
GPT2 = {
    "embedding_dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "norm": "pre",
    "activation": "gelu",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(SERVER is None, reason="needs llama-server of llama.cpp")
@pytest.mark.parametrize("dtype", ["float32", "float16", "q8_0"])
@pytest.mark.parametrize("form", ["Llama", "Llama, SentencePiece", "GPT-2"])
def test_it_gives_the_same_tokens(form, dtype, tmp_path):
    config = (GPT2 if form == "GPT-2" else LLAMA) | {"max_seq_len": 200}
    if form == "Llama, SentencePiece":
        tokenizer = SentenceTokenizer(all_pairs(llama2()), "</s>")
        config |= {"add_bos_token": True, "bos_token_id": 1}
    else:
        tokenizer = BpeTokenizer.train(["the sun and the moon", "How do you cook rice?"] * 9, 300)
    model = LLM(ModelConfig(**config), tokenizer)
    model.parameters += 0.3 * np.random.default_rng(5).standard_normal(model.n_parameters)
    model.save(tmp_path / "model")
    command = [sys.executable, SCRIPT, tmp_path / "model", "--server", SERVER, "--write", dtype]
    done = subprocess.run(
        [*map(str, command), "--tokens", "8", "--texts", "100"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["same_ids"] == found["texts"] == 100
    assert found["tokens"] > 100
    # llama.cpp rounds what it multiplies with such numbers, too, and a random model is never sure.
    if dtype != "float32":
        assert found["same"] > {"float16": 0.95, "q8_0": 0.8}[dtype]
    else:
        assert found["same_answers"] == found["answers"] == 20
