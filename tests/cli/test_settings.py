import argparse
import dataclasses

import pytest

from rustgpt.cli.settings import add_settings, given_settings, read_settings
from rustgpt.config import ModelConfig, TrainConfig
from rustgpt.errors import ConfigError
from rustgpt.presets import PRESETS

from .conftest import one_line


def settings(*args):
    parser = argparse.ArgumentParser()
    add_settings(parser)
    return read_settings(parser.parse_args(args))


def test_no_flags_are_the_defaults():
    assert settings() == (ModelConfig(), TrainConfig())


def test_every_field_has_a_flag_with_a_description():
    parser = argparse.ArgumentParser()
    add_settings(parser)
    helps = {action.dest: action.help for action in parser._actions}
    for kind in (ModelConfig, TrainConfig):
        for field in dataclasses.fields(kind):
            if "of_tokenizer" not in field.metadata:
                assert len(helps[field.name].partition(" (default")[0]) > 5


def test_a_command_may_offer_some_of_the_training_s_flags():
    parser = argparse.ArgumentParser()
    add_settings(parser, ["threads"])
    assert parser.parse_args(["--threads", "2", "--n-layers", "1"]).threads == 2
    flags = {action.dest for action in parser._actions}
    assert "batch_size" not in flags
    fields = dataclasses.fields(ModelConfig)
    assert flags > {field.name for field in fields if "of_tokenizer" not in field.metadata}


def test_flags():
    model, train = settings(
        *("--n-layers", "7", "--norm", "pre", "--no-attention-projection", "--tie-embeddings"),
        *("--tune-rate", "1e-3", "--batch-size", "3", "--schedule", "cosine", "--seed", "5"),
    )
    assert model == ModelConfig(
        n_layers=7, norm="pre", attention_projection=False, tie_embeddings=True, seed=5
    )
    assert train == TrainConfig(tune_rate=1e-3, batch_size=3, schedule="cosine", seed=5)


def test_a_preset_is_a_shape_which_flags_and_a_file_change(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("[model]\nn_layers = 2\nmax_seq_len = 64\n")
    flags = ("--preset", "llama-tiny", "--config", str(file), "--n-layers", "5")
    expected = ModelConfig.preset("llama-tiny", n_layers=5, max_seq_len=64)
    assert settings(*flags)[0] == expected
    parser = argparse.ArgumentParser()
    add_settings(parser)
    given = given_settings(parser.parse_args(flags))[0]
    assert given == {name: getattr(expected, name) for name in PRESETS["llama-tiny"]}


def test_a_preset_that_is_not_there(inside):
    one_line(inside("train", "--preset", "llama-huge"), 2, "--preset", "llama-tiny", "gpt2")


def test_a_preset_contradicts_a_model_with_other_sizes(inside, tmp_path):
    bench = inside("bench", "my-model", "--preset", "llama-tiny")
    one_line(bench, 2, "--preset contradicts the sizes of 'my-model'")


TOML = """
[model]
n_layers = 2
attention_bias = true
[train]
tune_rate = 1
seed = 3
"""


def test_flags_win_over_the_file(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_bytes(b"\xef\xbb\xbf" + TOML.encode())  # with a byte order mark
    model, train = settings("--config", str(file), "--n-layers", "4")
    assert model == ModelConfig(n_layers=4, attention_bias=True)
    assert train == TrainConfig(tune_rate=1, seed=3)
    model, train = settings("--config", str(file), "--seed", "9")
    assert (model.n_layers, model.seed, train.seed) == (2, 9, 9)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[model]\nn_layer = 2", ["settings.toml", "n_layer", "[model]", "n_layers"]),
        (b"[train]\nn_layers = 2", ["n_layers", "[train]"]),
        (b"n_layers = 2", ["'n_layers'", "[model] and [train]"]),
        (b"model = 2", ["'model'"]),
        (b"[serve]\n", ["'serve'"]),
        (b"[model]\nn_layers = 'two'", ["settings.toml", "[model]", "n_layers", "int", "'two'"]),
        (b"[model]\nn_layers = -1", ["settings.toml", "n_layers", "-1"]),
        (b"[model]\nn_layers = true", ["n_layers", "True"]),
        (b"[model]\nn_heads = 3", ["settings.toml", "n_heads must divide"]),
        (b"[model]\nattention_bias = 1", ["attention_bias"]),
        (b"[model]\nnorm = ['pre']", ["norm", "post, pre"]),
        (b"[train]\ntune_rate = nan", ["tune_rate", "nan"]),
        (b"[train]\ntune_rate = inf", ["tune_rate", "inf"]),
        (b"[train]\nseed = 1e3", ["settings.toml", "seed"]),
        (b"[model", ["settings.toml", "TOML"]),
        (b"a = 1\na = 2", ["TOML"]),
        (b"\xff\xfe", ["TOML"]),
        (b"a = " + b"[" * 100_000, ["TOML"]),
        (b"[model]\nn_layers = " + b"9" * 5000, ["TOML"]),
        (b"\0", ["TOML"]),
    ],
)
def test_bad_files(inside, tmp_path, content, words):
    (tmp_path / "settings.toml").write_bytes(content)
    one_line(inside("train", "--config", "settings.toml"), 2, *words)
    assert [file.name for file in tmp_path.iterdir()] == ["settings.toml"]


@pytest.mark.parametrize(
    ("table", "key", "meant"),
    [
        ("model", "n_layer", "did you mean n_layers?"),
        ("model", "n_embd", "did you mean embedding_dim?"),
        ("train", "learning_rate", "did you mean pretrain_rate or tune_rate?"),
        ("train", "max_step", "did you mean max_steps"),
        ("train", "n_layers", "it belongs into [model]"),
        ("model", "batch_size", "it belongs into [train]"),
        ("train", "colour", "which knows pretrain_epochs, "),
    ],
)
def test_an_unknown_key_is_told_what_was_meant(inside, tmp_path, table, key, meant):
    (tmp_path / "settings.toml").write_text(f"[{table}]\n{key} = 1\n")
    one_line(inside("train", "--config", "settings.toml"), 2, "settings.toml", repr(key), meant)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90", 90), ("90.5", 90.5), ("'10m'", 600), ("'1.5h'", 5400), ("'7s'", 7)],
)
def test_a_time_in_a_file(tmp_path, value, seconds):
    file = tmp_path / "settings.toml"
    file.write_text(f"[train]\nmax_time = {value}\n")
    assert settings("--config", str(file))[1].max_time == seconds
    assert settings("--max-time", value.strip("'"))[1].max_time == seconds


@pytest.mark.parametrize("value", ["'x'", "'-1'", "''", "-1", "true", "nan"])
def test_a_wrong_time_in_a_file(inside, tmp_path, value):
    (tmp_path / "settings.toml").write_text(f"[train]\nmax_time = {value}\n")
    one_line(inside("train", "--config", "settings.toml"), 2, "settings.toml", "max_time")


def test_given_settings_are_those_of_the_file_and_the_flags(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text(TOML)
    parser = argparse.ArgumentParser()
    add_settings(parser)
    args = parser.parse_args(["--config", str(file), "--n-layers", "4", "--patience", "2"])
    assert given_settings(args) == (
        {"n_layers": 4, "attention_bias": True}, {"tune_rate": 1, "seed": 3, "patience": 2},
    )  # fmt: skip
    assert given_settings(parser.parse_args([])) == ({}, {})


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--preset", "llama-small", "--n-layers", "2"],
        ["--max-time", "10m", "--seed", "7", "--norm", "pre"],
        ["--max-steps", "9", "--tune-epochs", "3", "--epsilon", "1e-12", "--max-grad-norm", "inf"],
        ["--validation-share", "0.25", "--tie-embeddings", "--beta2", "0.99", "--loss-on", "all"],
    ],
)
def test_the_settings_that_are_printed_are_read_back(inside, tmp_path, flags):
    done = inside("train", *flags, "--print-config", stdin=b"")
    assert (done.status, done.err) == (0, "")
    assert inside(*flags, "--print-config").out == done.out
    (tmp_path / "run.toml").write_text(done.out)
    again = inside("train", "--config", "run.toml", "--print-config")
    assert again.out == done.out
    assert settings("--config", "run.toml") == settings(*flags)
    assert ("validation_share = 0.25" in done.out) == ("--validation-share" in flags)
    assert [file.name for file in tmp_path.iterdir()] == ["run.toml"]


@pytest.mark.parametrize(("name", "word"), [("none.toml", "No such file"), (".", "directory")])
def test_files_that_cannot_be_read(inside, name, word):
    one_line(inside("train", "--config", name), 2, name, word)


def test_a_flag_is_not_blamed_on_the_file(tmp_path):
    file = tmp_path / "settings.toml"
    file.write_text("[model]\nn_layers = 1\n")
    with pytest.raises(ConfigError, match=r"^n_heads must be"):
        settings("--config", str(file), "--n-heads", "0")


@pytest.mark.parametrize(
    "flags",
    [
        *(["--n-heads", bad] for bad in ("0", "-1", "1e9", "nan", "inf", "", "3", "99999999999")),
        *(["--embedding-dim", bad] for bad in ("0", "-1", "1e9", "1000000000", "x", "130")),
        *(["--hidden-dim", bad] for bad in ("0", "-1", "1000000000")),
        *(["--n-layers", bad] for bad in ("-1", "1000000000", "1.5", "9" * 5000)),
        *(["--max-seq-len", bad] for bad in ("0", "1", "-1", "1000000000")),
        *(["--batch-size", bad] for bad in ("0", "-1", "1e9", "1000000000", "")),
        *(["--pretrain-epochs", bad] for bad in ("-1", "1e9", "inf", "", "9999999999")),
        *(["--tune-rate", bad] for bad in ("-1", "1e9", "nan", "inf", "-inf", "", "fast")),
        *(["--beta1", bad] for bad in ("-1", "1", "1e9", "nan", "inf")),
        *(["--epsilon", bad] for bad in ("0", "-1", "1e9", "nan", "inf")),
        *(["--max-grad-norm", bad] for bad in ("0", "-1", "nan")),
        *(["--weight-decay", bad] for bad in ("-1", "1e9", "nan", "inf")),
        *(["--dropout", bad] for bad in ("-0.1", "1", "1.5", "nan", "x", "")),
        *(["--final-rate", bad] for bad in ("-1", "2", "nan")),
        *(["--warmup-steps", bad] for bad in ("-1", "1e9", "nan")),
        *(["--threads", bad] for bad in ("-1", "1e9", "1000000000", "nan")),
        *(["--seed", bad] for bad in ("-1", "1e9", "", str(2**63))),
        *([flag, bad] for flag in ("--activation", "--norm", "--schedule", "--dtype")
          for bad in ("", "x")),
        *([flag, ""] for flag in ("--out", "--pretrain", "--chat", "--config")),
        ["--language", "fr"],
        ["--n-layers"],
        ["--tie-embeddings=yes"],
        ["--out", "a\0b"],
    ],
)  # fmt: skip
def test_flags_out_of_range_end_before_any_work(inside, tmp_path, flags):
    for command in ([], ["train"]):
        one_line(inside(*command, *flags), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [[], ["chat"], ["generate", "model", "text"]])
@pytest.mark.parametrize(
    "flags",
    [
        *(["--temperature", bad] for bad in ("-1", "nan", "inf", "", "hot", "-1e-9")),
        *(["--max-new-tokens", bad] for bad in ("0", "-1", "1e9", "1000000000", "nan", "")),
        *(["--seed", bad] for bad in ("-1", "1e9", "nan", "", str(2**64))),
    ],
)
def test_sampling_out_of_range_ends_before_any_work(inside, tmp_path, command, flags):
    one_line(inside(*command, *flags), 2, flags[0].strip("-"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--n-heads", "3"], ["--tune-rate", "nan"]])
def test_flags_out_of_range_as_a_process(process, flags):
    one_line(process(*flags), 2)
