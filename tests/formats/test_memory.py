"""Owns the test of the memory that reading a model takes: the model once, and some rows."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import rustgpt

from .conftest import C, gpt2_config, gpt2_tensors, write

MB = 2**20
# Reads a model, and prints by how many bytes the largest memory in use has grown.
READ = """
import resource, sys
import numpy, safetensors
import rustgpt.llm, rustgpt.formats.huggingface

def largest():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

rustgpt.LLM.load(sys.argv[1] + "/small")
before = largest()
model = rustgpt.LLM.load(sys.argv[1] + "/large")
print(largest() - before, model.parameters.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="units of the system")
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_model_is_read_in_its_own_memory_and_a_little_more(dtype: type, tmp_path: Path) -> None:
    write(tmp_path / "small", gpt2_config(), gpt2_tensors())
    F = 1_000_000
    tensors = gpt2_tensors()
    for i in range(2):
        tensors[f"transformer.h.{i}.mlp.c_fc.weight"] = np.ones((C, F), dtype)
        tensors[f"transformer.h.{i}.mlp.c_fc.bias"] = np.ones(F, dtype)
        tensors[f"transformer.h.{i}.mlp.c_proj.weight"] = np.ones((F, C), dtype)
    write(tmp_path / "large", gpt2_config(n_inner=F), {})
    save_file(tensors, tmp_path / "large" / "model.safetensors")
    env = os.environ | {"PYTHONPATH": str(Path(rustgpt.__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path)], capture_output=True, check=True, env=env
    )
    grown, size = map(int, done.stdout.split())
    assert size > 95 * MB
    assert grown < size + 25 * MB  # a tensor has 23 MB
