import json
import re

import pytest

import rustgpt

from .conftest import SMALL, one_line

QUICK = (*SMALL, "--max-seq-len", "8", "--batch-size", "2", "--steps", "2")


def test_speed(process):
    done = process("bench", *QUICK, "--vocab-size", "50")
    assert (done.status, done.err) == (0, "")
    rows = dict(re.split("  +", line, maxsplit=1) for line in done.out.splitlines()[3:])
    assert [*rows] == [
        "tokens per second", "ms a step", "GFLOP/s", "SGEMM", "share of SGEMM", "peak memory",
    ]  # fmt: skip
    assert "median of 2 steps" in rows["tokens per second"]
    assert re.fullmatch(r"\d+%", rows["share of SGEMM"])
    assert "vocabulary 50\nStep: 2 texts of 8 random tokens; kernels: " in done.out


@pytest.mark.slow
def test_profile(process):
    done = process("bench", "--profile", *QUICK)
    assert (done.status, done.err) == (0, "")
    whole, parts, how = done.out.split("\n\n")[2:]
    assert re.search(r"^block +forward +1 .* GFLOP/s +\d+%$", whole, re.MULTILINE)
    assert re.search(r"^layer_norm +backward +2 .* GB/s +\d+%$", parts, re.MULTILINE)
    assert "\nattention " not in whole
    assert "\nblock " not in parts
    assert whole.count("\nbetween the kernels ") == parts.count("\nbetween the kernels ") == 1
    assert how.startswith("How this is measured: ")
    assert max(map(len, done.out.splitlines())) <= 100


@pytest.mark.slow
def test_json(process):
    done = process("bench", *QUICK, "--profile", "--json", "--context", "5")
    facts = json.loads(done.out)
    assert (done.status, done.err) == (0, "")
    assert (facts["steps"], facts["threads"], facts["batch_size"], facts["context"]) == (2, 1, 2, 5)
    assert facts["config"]["embedding_dim"] == 16
    assert facts["share_of_product"] == pytest.approx(facts["gflops"] / facts["product_gflops"])
    assert {*facts["profile"]} == {"whole_blocks", "by_parts"}
    lines = facts["profile"]["by_parts"]["lines"]
    assert {"linear", "attention", "layer_norm", "relu"} <= {line["kernel"] for line in lines}


def test_a_saved_model_stays_as_it_is(inside, model):
    before = rustgpt.LLM.load(model)
    done = inside("bench", model, "--steps", "2", "--threads", "1", "--json")
    facts = json.loads(done.out)
    assert (done.status, facts["parameters"]) == (0, before.n_parameters)
    assert facts["config"] == before.config.to_dict()
    after = rustgpt.LLM.load(model)
    assert (after.parameters == before.parameters).all()


def test_settings_from_a_file(inside, tmp_path):
    (tmp_path / "mine.toml").write_text(
        "[model]\nembedding_dim = 8\ndtype = 'float64'\n[train]\nbatch_size = 3\nthreads = 1\n"
    )
    done = inside("bench", "--config", "mine.toml", "--steps", "1")
    assert done.status == 0
    assert "dimension 8" in done.out
    assert "Step: 3 texts of 80 random tokens" in done.out
    assert "share of DGEMM" in done.out


def test_seconds(inside):
    done = inside("bench", *QUICK[:-2], "--seconds", "0.05", "--json")
    assert json.loads(done.out)["steps"] > 0


@pytest.mark.slow
def test_on_the_reference_kernels(process):
    done = process("bench", *QUICK, "--profile", env={"RUSTGPT_BACKEND": "reference"})
    assert done.status == 0
    assert "kernels: reference; threads: 1" in done.out
    assert "\nblock  " in done.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--steps", "0"], ["--steps", "'0'"]),
        (["--steps", "2", "--seconds", "1"], ["--seconds", "--steps"]),
        *((["--seconds", bad], ["--seconds"]) for bad in ("0", "-1", "nan", "inf", "1e9", "")),
        *((["--vocab-size", bad], ["--vocab-size"]) for bad in ("0", "-1", "x", "9999999999")),
        (["--context", "0"], ["--context"]),
        (["--context", "81"], ["context must be from 1 to", "80", "81"]),
        (["--n-heads", "3"], ["n_heads"]),
        (["--embedding-dim", str(2**20)], ["GiB"]),
        (["--vocab-size", str(2**31 - 1)], ["GiB"]),
        (["--tune-epochs", "2"], ["--tune-epochs", "rustgpt bench --help"]),
        (["saved", "--n-layers", "2"], ["--n-layers contradicts the sizes of 'saved'"]),
        (["saved", "--vocab-size", "9"], ["--vocab-size contradicts"]),
        (["saved", "--no-output-bias"], ["--output-bias contradicts"]),
        (["a", "b"], ["'b'"]),
    ],
)
def test_wrong_usage(inside, flags, words):
    one_line(inside("bench", *flags), 2, *words)


def test_wrong_usage_as_a_process(process):
    one_line(process("bench", "--seconds", "soon"), 2, "--seconds", "'soon'")


def test_no_model(process):
    one_line(process("bench", "nowhere"), 1, "nowhere")
