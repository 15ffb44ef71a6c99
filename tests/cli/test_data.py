import json
import re

import pytest

from rustgpt.cli.data import FORMATS
from rustgpt.text.reading import FORM_NAMES

from .conftest import one_line

ROWS = """[
 {"question": "Is tar sticky?", "answer": "Yes,\\nit is.", "source": 1},
 {"question": "Is glass soft?", "answer": null},
 "", "Moles dig."
]"""


@pytest.fixture
def rows(tmp_path):
    """A file of all sorts."""
    (tmp_path / "rows.json").write_text(ROWS)
    return "rows.json"


def test_what_would_be_read(process, rows):
    done = process("data", rows)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:6] == [
        "'rows.json': JSON, 1 text, 1 dialogue",
        "  cannot be used: 1 row",
        "    row 2 (line 3): 'answer' is null, not text",
        "  empty: 1 row",
        "  ignored keys: 'source' (1)",
        "",
    ]
    assert lines[6] == "Read: 1 file, 1 text, 1 dialogue"
    assert re.fullmatch(
        r"Tokens: 21, 0\.\d{3} a byte, by WordTokenizer with \d+ tokens; 0 of them pieces of "
        "unknown words",
        lines[7],
    )
    assert lines[8] == (
        "Longest: 16 tokens; the context has 80, so 0 texts and 0 dialogues will be cut"
    )
    assert lines[9].startswith("Tokenizer: words, for there are dialogues, ")
    assert lines[10].startswith("warning: the data are 21 tokens")
    assert lines[11:] == [
        "",
        "What the model will see; the loss counts from >> to <<:",
        "1. </s>>>Moles dig.</s><<",
        r"2. </s>User: Is tar sticky? Assistant:>> Yes,\nit is.</s><<",
    ]


def test_as_json(inside, rows):
    done = inside("data", "--json", "--max-seq-len", "10", rows, "--examples", "1")
    facts = json.loads(done.out)
    (file,) = facts["files"]
    assert (file["form"], file["texts"], file["dialogues"]) == ("json", 1, 1)
    assert (file["empty"], file["unusable"], file["ignored"]) == (1, 1, {"source": 1})
    assert (facts["tokens"], facts["longest"], facts["unknown_pieces"]) == (21, 16, 0)
    assert facts["tokens_per_byte"] == 21 / facts["bytes"]
    assert facts["dialogues"] == {"rows": 1, "tokens": 16, "single": 0, "cut": 1, "masked": 0}
    assert len(facts["warnings"]) == 2
    assert facts["examples"][1][:1] == [
        {"text": "</s>User: Is tar sticky? Assistant:", "counted": False}
    ]


def test_the_loss_on_all(inside, rows):
    done = inside("data", rows, "--loss-on", "all")
    assert r"2. </s>>>User: Is tar sticky? Assistant: Yes,\nit is.</s><<" in done.out


def test_a_folder_of_many_files(inside, tmp_path):
    for number in range(14):
        (tmp_path / f"{number:02}.md").write_text(f"Note {number} is here.")
    (tmp_path / "13.md").write_bytes(b"\0")
    out = inside("data", ".").out
    assert out.count("document, 1 text") == 10
    assert "and 3 more files" in out
    assert "left out, for it cannot be read: 1 file\n  '13.md', line 1, column 1: a NUL" in out


def test_the_bundled_data_and_standard_input(inside):
    done = inside("data", "--language", "en")
    assert (done.status, "warning" in done.out) == (0, False)
    assert "Read: 1 file, 1 text, 0 dialogues" in inside("data", "-", stdin=b"Moles dig.").out


def test_a_header_that_is_not_known(inside, tmp_path):
    (tmp_path / "a.csv").write_text('id,saying\n1,"Moles dig, mostly."\n2,Tar is sticky.\n')
    out = inside("data", "a.csv").out
    assert "a.csv': CSV, 2 texts\n  its first record was taken for the names of columns" in out


def test_wrong_usage(inside, rows):
    one_line(inside("data", "none.txt"), 1, "cannot read 'none.txt'")
    one_line(inside("data", rows, "--max-seq-len", "0"), 2, "--max-seq-len")
    one_line(inside("data", rows, "--format", "xml"), 2, "--format")


def test_the_names_of_the_forms():
    assert FORMATS == FORM_NAMES
