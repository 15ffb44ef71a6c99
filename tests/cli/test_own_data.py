"""Tests that somebody's own data become a model that does what he expects, with one command."""

import json
import random
import re

import pytest

import rustgpt

NAME = re.compile(r"(?:[bdfgklmnprstvz][aeiou]){2,3}[nrsl]?", re.IGNORECASE)
TOOLS = {
    "hammer": "drives nails", "saw": "cuts boards", "file": "smooths metal",
    "drill": "makes holes", "brush": "spreads paint", "chisel": "shapes wood",
    "wrench": "turns bolts", "knife": "cuts rope",
}  # fmt: skip


def names(n: int) -> list[str]:
    """Return different names of a small grammar."""
    rng, found = random.Random(7), {}
    while len(found) < n:
        syllables = [
            rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(rng.choice((2, 2, 3)))
        ]
        found["".join([*syllables, rng.choice(("", "n", "r", "s", "l"))]).capitalize()] = None
    return [*found]


@pytest.mark.slow
def test_a_list_of_names_gives_new_names(process, tmp_path):
    known = names(1000)[:900]
    (tmp_path / "names.txt").write_text("\n".join(known) + "\n")
    done = process("train", "names.txt", "--out", "model")
    assert done.status == 0
    assert "tokenizer: characters, for the texts are short" in done.err
    assert "no lower validation loss for 5 evaluations" in done.err
    model = rustgpt.LLM.load(tmp_path / "model")
    made = [model.generate("", 20, 1.0, seed) for seed in range(100)]
    new = [name for name in made if NAME.fullmatch(name) and name not in known]
    assert len({*new}) >= 80
    assert len({name[0] for name in made}) > 8  # the first letter is learned, too


@pytest.mark.slow
def test_a_folder_of_notes_is_continued(process, tmp_path):
    (tmp_path / "notes").mkdir()
    for tool, work in TOOLS.items():
        text = f"# The {tool}\n\nA {tool} {work}.\nKeep your {tool} dry and clean.\n"
        (tmp_path / "notes" / f"{tool}.md").write_text(text)
    assert process("train", "notes", "--out", "model", "--pretrain-epochs", "60").status == 0
    done = process("generate", "model", "# The saw\n", "--max-new-tokens", "6")
    assert done.out.startswith("# The saw\n\nA saw ")


@pytest.mark.slow
def test_a_file_of_alpacas_form_is_answered(process, tmp_path):
    rows = [
        {"instruction": f"Say what the {tool} does.", "input": "", "output": f"It {work}."}
        for tool, work in TOOLS.items()
    ]
    rows += [
        {"instruction": "Name the tool that does this.", "input": work, "output": f"The {tool}."}
        for tool, work in TOOLS.items()
    ]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    assert process("train", "alpaca.json", "--out", "model").status == 0
    asked = [f"{row['instruction']}\n{row['input']}".strip() for row in rows]
    model = rustgpt.LLM.load(tmp_path / "model")
    right = [
        model.chat().send(text) == row["output"] for text, row in zip(asked, rows, strict=True)
    ]
    assert sum(right) >= 15
