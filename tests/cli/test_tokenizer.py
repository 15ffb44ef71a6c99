import json

import pytest

from rustgpt.text.tokenizer import WordTokenizer, load_tokenizer

from .conftest import SMALL, one_line

NAMES = ["Anna", "Bela", "Cleo", "Dora", "Edda", "Fina", "Gina", "Hella", "Ina", "Jana", "Kira"]
NAMES += ["Lea", "Mia", "Nora", "Olga", "Pia", "Rosa"]
VOCABULARY = 257 + len({*"".join(NAMES)})


@pytest.fixture
def names(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return "names.txt"


@pytest.fixture
def prose(tmp_path):
    (tmp_path / "prose.txt").write_text("The sun rises.\n\nThe sun sets, and we'll rest.\n")
    return "prose.txt"


def test_train_says_what_it_chose_and_why(process, names, tmp_path):
    done = process("tokenizer", "train", names)
    assert (done.status, done.out) == (0, f"tokenizer.json: CharTokenizer, {VOCABULARY} tokens\n")
    assert done.err.startswith("rustgpt: tokenizer: characters, for the texts are short")
    assert done.err.count("\n") == 1
    assert load_tokenizer(tmp_path / "tokenizer.json").characters == "".join(
        sorted({*"".join(NAMES)})
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["names.txt", "tokenizer.json"]


def test_a_file_is_replaced_only_when_asked_for(inside, names, tmp_path):
    flags = ("tokenizer", "train", names, "--tokenizer", "byte", "--out", "a.json")
    (tmp_path / "a.json").write_text("mine")
    one_line(inside(*flags), 2, "a.json", "--overwrite")
    assert (tmp_path / "a.json").read_text() == "mine"
    done = inside(*flags, "--overwrite")
    assert (done.status, done.out, done.err) == (0, "a.json: ByteTokenizer, 257 tokens\n", "")
    one_line(inside(*flags[:-1], "no/where.json"), 1, "no/where.json", "--out")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["word", "char", "byte"])
def test_encode_and_decode_are_inverse(process, prose, kind):
    assert process("tokenizer", "train", prose, "--tokenizer", kind, "--out", "t").status == 0
    text = "  The sun\n é\t</s> 山!\n\n"
    by_argument = process("tokenizer", "encode", "t", text)
    by_input = process("tokenizer", "encode", "t", stdin=text.encode())
    assert by_argument == by_input
    assert by_input.status == 0
    assert all(word.isdigit() for word in by_input.out.split())
    decoded = process("tokenizer", "decode", "t", stdin=by_input.out.encode())
    assert decoded == (0, text + "\n", "")
    assert process("tokenizer", "decode", "t", *by_input.out.split()) == decoded
    shown = json.loads(process("tokenizer", "encode", "t", text, "--json").out)
    assert shown["ids"] == [*map(int, by_input.out.split())]
    assert len(shown["tokens"]) == len(shown["ids"])
    back = process("tokenizer", "decode", "t", "--json", *map(str, shown["ids"]))
    assert json.loads(back.out) == {"text": text}


def test_encode_with_a_model(inside, model):
    ids = inside("tokenizer", "encode", model, "The sun rises").out
    assert inside("tokenizer", "decode", model, *ids.split()).out == "The sun rises\n"
    assert inside("tokenizer", "decode", model, "0").out == "</s>\n"


def test_stats(inside, prose):
    inside("tokenizer", "train", prose, "--tokenizer", "word", "--out", "t")
    done = inside("tokenizer", "stats", "t", prose)
    assert (done.status, done.err) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.out.splitlines())
    assert rows["tokenizer"].strip().startswith("WordTokenizer, ")
    assert rows["most frequent"].strip().startswith(r"'\n' 2, '.' 2, 'The' 2, 'sun' 2")
    facts = json.loads(inside("tokenizer", "stats", "t", prose, "--json").out)
    assert (facts["texts"], facts["unknown_pieces"]) == (1, 0)
    assert facts["bytes_per_token"] == facts["bytes"] / facts["tokens"]
    assert facts["most_frequent"][0] == ["\n", 2]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, ["ACTION"]),
        (("guess",), 2, ["guess", "encode"]),
        (("encode",), 2, ["TOKENIZER"]),
        (("encode", "nowhere", "x"), 1, ["nowhere", "tokenizer.json"]),
        (("encode", "bad.json", "x"), 1, ["bad.json", "JSON"]),
        (("decode", "byte.json", "257"), 1, ["from 0 to 256"]),
        (("decode", "byte.json", "1.5"), 1, ["whole number"]),
        (("decode", "byte.json", "²"), 1, ["whole number"]),
        (("decode", "byte.json", "9" * 5000), 1, ["whole number"]),
        (("stats", "byte.json", "nowhere"), 1, ["nowhere"]),
        (("encode", "byte.json", "x", "--jso"), 2, ["--jso"]),
        (("train", "names.txt", "--tokenizer", "nowhere"), 1, ["nowhere", "word, char"]),
        (("train", "names.txt", "--tokenizer", "byte.json", "--vocab-size", "9"), 2, ["leave out"]),
        (("train", "names.txt", "--tokenizer", "char", "--vocab-size", "256"), 2, ["from 257"]),
        (("train", "names.txt", "--vocab-size", "0"), 2, ["--vocab-size"]),
    ],
)
def test_mistakes(inside, names, tmp_path, arguments, status, words):
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "byte.json").write_text('{"format": "rustgpt-byte", "version": 1, "bytes": 256}')
    before = sorted(tmp_path.iterdir())
    one_line(inside("tokenizer", *arguments), status, *words)
    assert sorted(tmp_path.iterdir()) == before


def test_bytes_that_are_not_utf8(process, tmp_path):
    (tmp_path / "t").write_text('{"format": "rustgpt-byte", "version": 1, "bytes": 256}')
    one_line(process("tokenizer", "encode", "t", stdin=b"ab\xff"), 1, "byte 3", "0xFF", "UTF-8")
    assert process("tokenizer", "encode", "t", stdin=b"") == (0, "\n", "")


# --- the flags of a training


EPOCH = ("--pretrain-epochs", "1", "--tune-epochs", "1")


def test_train_by_characters(process, names):
    done = process("train", names, *SMALL, *EPOCH)
    assert done.status == 0
    assert f"Vocabulary: {VOCABULARY} tokens" in done.out
    assert "rustgpt: tokenizer: characters, for the texts are short" in done.err
    assert process("tokenizer", "encode", "rustgpt-model", "Ax").out == f"257 {1 + ord('x')}\n"


@pytest.mark.parametrize(
    ("flags", "vocabulary"),
    [
        (("--tokenizer", "byte"), 257),
        (("--tokenizer", "char", "--vocab-size", "270"), 270),
        (("--tokenizer", "t.json"), 257),
    ],
)
def test_train_with_a_tokenizer(inside, names, tmp_path, flags, vocabulary):
    (tmp_path / "t.json").write_text('{"format": "rustgpt-byte", "version": 1, "bytes": 256}')
    done = inside("train", names, *SMALL, *EPOCH, *flags)
    assert done.status == 0
    assert f"Vocabulary: {vocabulary} tokens" in done.out
    assert "tokenizer:" not in done.err
    facts = json.loads(inside("data", names, *flags, "--json").out)
    assert facts["vocabulary"] == vocabulary


def test_the_bundled_data_are_learned_by_words(inside):
    done = inside("train", "--language", "en", *SMALL, "--pretrain-epochs", "0", *EPOCH[2:])
    assert done.status == 0
    assert "tokenizer:" not in done.err
    assert isinstance(load_tokenizer("rustgpt-model"), WordTokenizer)
