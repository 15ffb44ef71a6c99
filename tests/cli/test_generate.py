import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

import rustgpt
from rustgpt.cli.terminal import clean

from .conftest import one_line, start

posix = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def test_prompt_and_continuation(process, model):
    done = process("generate", model, "The sun")
    made = rustgpt.LLM.load(model).generate("The sun")
    assert made
    assert done == (0, f"The sun{made}\n", "")


def test_json(inside, model):
    done = inside("generate", model, "雨 \x1b", "--json", "--max-new-tokens", "3")
    made = rustgpt.LLM.load(model).generate("雨 \x1b", max_new_tokens=3)
    content = json.loads(done.out)
    (sample,) = content["samples"]
    assert content["prompt"] == "雨 \x1b"
    assert sample["text"] == made
    tokens = rustgpt.LLM.load(model).samples("雨 \x1b", max_new_tokens=3)[0].tokens
    assert [token["id"] for token in sample["tokens"]] == [token.id for token in tokens]
    assert sample["ended"] == ("end" if tokens[-1].text == "</s>" else "length")
    assert {*sample["tokens"][0]} == {"id", "text", "logprob", "likeliest"}
    assert sample["tokens"][0]["logprob"] < 0
    assert done.out.isascii()
    assert done.out[:-1].isprintable()


def test_the_seed_decides(inside, model):
    def generate(seed: str) -> str:
        flags = ("--temperature", "5", "--seed", seed, "--max-new-tokens", "20")
        return inside("generate", model, "The", *flags).out

    assert generate("1") == generate("1")
    assert generate("1") != generate("2")


def test_max_new_tokens(inside, model):
    short = inside("generate", model, "The sun", "--max-new-tokens", "1").out
    assert inside("generate", model, "The sun").out.startswith(short.rstrip("\n"))


@pytest.mark.parametrize("prompt", ["", " ", "</s>", "<0x41>", "\udcff", "\x1b[31m", "é" * 3])
def test_any_prompt(inside, model, prompt):
    done = inside("generate", model, prompt, "--max-new-tokens", "4")
    assert (done.status, done.err) == (0, "")
    assert "\x1b" not in done.out


def test_a_prompt_longer_than_the_context_is_told(inside, model):
    done = inside("generate", model, "sun " * 200, "--max-new-tokens", "4")
    assert done.status == 0
    assert done.err.startswith("rustgpt: the text has ")
    assert "the last 80 of" in done.err


def test_bytes_that_are_not_utf8(process, model):
    done = process("generate", model, b"sun \xff", "--max-new-tokens", "2")
    assert done.status == 0
    assert done.out.startswith("sun \ufffd")


def test_an_encoding_without_the_characters(process, model):
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = process("generate", model, "雨", "--max-new-tokens", "1", env=env)
    assert done.status == 0
    assert done.out.startswith("?")


def test_damaged_models(inside, tmp_path, model):
    one_line(inside("generate", "nowhere", "text"), 1, "nowhere", "rustgpt train")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        copy = Path(shutil.copytree(model, tmp_path / name))
        content = (copy / name).read_bytes()
        for damaged in (content[:-2], b"", content[:100] + b"\xff" + content[101:]):
            (copy / name).write_bytes(damaged)
            one_line(inside("generate", str(copy), "text"), 1, name)
        (copy / name).unlink()
        one_line(inside("generate", str(copy), "text"), 1, name)


def test_the_text_comes_as_argument_file_or_standard_input(process, model, tmp_path):
    expected = process("generate", model, "The sun")
    assert expected.status == 0
    (tmp_path / "prompt.txt").write_bytes(b"\xef\xbb\xbfThe sun\r\n")
    for arguments in (["-"], [], ["--file", "-"]):
        assert process("generate", model, *arguments, stdin=b"The sun\n") == expected
    assert process("generate", model, "--file", "prompt.txt") == expected


def test_a_file_that_is_not_there(inside, model):
    one_line(inside("generate", model, "--file", "none.txt"), 1, "cannot read 'none.txt'")
    one_line(inside("generate", model, "text", "--file", "none.txt"), 2, "leave out one of them")


def test_a_terminal_without_a_text_is_told_what_to_do(inside, model, monkeypatch):
    monkeypatch.setattr("rustgpt.cli.generate.is_terminal", lambda _: True)
    one_line(inside("generate", model), 2, "there is no text", "--file")


def test_stream_prints_the_same(process, inside, model):
    for flags in ([], ["--stop", "e"], ["--temperature", "2", "--seed", "3"]):
        whole = inside("generate", model, "The", *flags)
        assert whole.status == 0
        assert inside("generate", model, "The", "--stream", *flags) == whole
    assert process("generate", model, "The", "--stream") == inside("generate", model, "The")


def test_several_samples(inside, model):
    flags = ("--temperature", "5", "--max-new-tokens", "8", "--seed", "4")
    done = inside("generate", model, "The sun", "--n", "3", "--json", "--logprobs", "2", *flags)
    samples = json.loads(done.out)["samples"]
    assert len({sample["text"] for sample in samples}) == 3
    assert all(len(token["likeliest"]) == 2 for s in samples for token in s["tokens"])
    alone = inside("generate", model, "The sun", *flags)
    assert alone.out == clean(f"The sun{samples[0]['text']}\n")
    done = inside("generate", model, "The sun", "--n", "3", *flags)
    texts = [f"The sun{sample['text']}" for sample in samples]
    assert done.out == clean("\n\n".join(texts) + "\n")


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        *((["--top-k", bad], "top-k") for bad in ("-1", "x", "1.5", "")),
        *((["--top-p", bad], "top-p") for bad in ("-0.1", "1.1", "nan", "inf")),
        *((["--min-p", bad], "min-p") for bad in ("-1", "2")),
        *((["--repetition-penalty", bad], "repetition-penalty") for bad in ("0", "-1", "nan")),
        *((["--n", bad], "--n") for bad in ("0", "-1", "1e9")),
        *((["--num-beams", bad], "num-beams") for bad in ("0", "65")),
        (["--num-beams", "2", "--temperature", "1"], "temperature 0"),
        (["--stop", ""], "stop"),
        (["--choice", ""], "choice"),
        (["--json-schema", "{"], "not JSON"),
        (["--json-schema", "[1]"], "cannot read"),
        (["--stream", "--n", "2"], "leave out --n"),
        (["--num-return-sequences", "2"], "did you mean --n?"),
    ],
)
def test_wrong_settings_end_before_any_work(inside, flags, word):
    one_line(inside("generate", "no-model", "text", *flags), 2, word)


def test_what_changes_nothing_is_told(inside, model):
    done = inside("generate", model, "The", "--top-k", "3", "--top-p", "0.5")
    what = "at temperature 0, which takes the likeliest token, top_k and top_p change nothing"
    assert done.err == f"rustgpt: {what}\n"
    assert inside("generate", model, "The", "--top-k", "3", "--temperature", "1").err == ""
    for flags, what in (
        (["--n", "2"], "at temperature 0 all 2 texts are the same"),
        (["--length-penalty", "2"], "length_penalty is for beams"),
        (["--logprobs", "2"], "logprobs are printed with --json alone"),
    ):
        assert what in inside("generate", model, "The", *flags).err
    for flags in (["--n", "2", "--num-beams", "2", "--length-penalty", "2"], ["--json"]):
        assert inside("generate", model, "The", *flags).err == ""


def test_flags_reach_the_model(inside, model):
    assert inside("generate", model, "The sun").out == "The sun rises in the east\n"
    assert inside("generate", model, "The sun", "--stop", "rises").out == "The sun \n"
    made = rustgpt.LLM.load(model).generate
    for flags, settings in (
        (["--repetition-penalty", "5"], {"repetition_penalty": 5.0}),
        (["--no-repeat-ngram", "1"], {"no_repeat_ngram": 1}),
        (["--frequency-penalty", "9"], {"frequency_penalty": 9.0}),
        (["--temperature", "9", "--top-k", "2"], {"temperature": 9.0, "top_k": 2}),
    ):
        expected = f"The sun{made('The sun', **settings)}\n"
        assert inside("generate", model, "The sun", *flags).out == expected


def test_an_answer_is_held_to_choices_or_a_schema(inside, model, tmp_path):
    for flags in ([], ["--stream"], ["--num-beams", "4"], ["--temperature", "3"]):
        done = inside("generate", model, "The sun", "--choice", "is red", "--choice", "雨", *flags)
        assert done.out in ("The sun is red\n", "The sun 雨\n")
    schema = {"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"}
    (tmp_path / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    for given in (json.dumps(schema), "schema.json"):
        flags = ("--json-schema", given, "--max-new-tokens", "100", "--json")
        (sample,) = json.loads(inside("generate", model, "The sun", *flags).out)["samples"]
        assert {*json.loads(sample["text"])} == {"a"}
        assert sample["ended"] == "end"
    one_line(inside("generate", model, "The", "--json-schema", '{"pattern": "a"}'), 2, "'pattern'")


def test_beams_are_sorted_by_how_likely_they_are(inside, model):
    flags = ("--num-beams", "4", "--n", "3", "--json", "--length-penalty", "0")
    samples = json.loads(inside("generate", model, "Water", *flags).out)["samples"]
    totals = [sum(token["logprob"] for token in sample["tokens"]) for sample in samples]
    assert totals == sorted(totals, reverse=True)
    assert len({sample["text"] for sample in samples}) == 3


def test_a_stream_of_json_has_a_line_for_each_token(inside, model):
    flags = ("--json", "--logprobs", "1", "--max-new-tokens", "3")
    *lines, end = map(
        json.loads, inside("generate", model, "The", "--stream", *flags).out.splitlines()
    )
    (sample,) = json.loads(inside("generate", model, "The", *flags).out)["samples"]
    assert [line["token"] for line in lines] == sample["tokens"]
    assert "".join(line["text"] for line in lines) == sample["text"]
    assert end == {"ended": sample["ended"]}


def long_stream(endless, tmp_path):
    flags = ("--stream", "--max-new-tokens", "1000000")
    return start("generate", endless, "Who", *flags, cwd=tmp_path)


@posix
def test_ctrl_c_ends_a_stream_and_what_was_printed_stays(tmp_path, endless):
    with long_stream(endless, tmp_path) as child:
        begun = child.stdout.read(40)
        child.send_signal(signal.SIGINT)
        rest, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert err == b""
    assert (begun + rest).decode().startswith("Who ")


@posix
def test_a_stream_into_a_closed_pipe_ends_quietly(tmp_path, endless):
    with long_stream(endless, tmp_path) as child:
        assert child.stdout.read(5).startswith(b"Who ")
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1
