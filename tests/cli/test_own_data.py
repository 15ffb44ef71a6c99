"""Tests that somebody's own data become a model that does what he expects, with one command."""

import json
import random
import re
import signal
import time

import pytest

import rustgpt

from .conftest import SMALL, start

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
    answers = [row["output"] for row in rows]
    model = rustgpt.LLM.load(tmp_path / "model")
    alone = [model.chat().send(text) for text in asked]
    chat = model.chat()
    in_turn = [chat.send(text) for text in asked]
    for found in (alone, in_turn):
        assert sum(map(str.__eq__, found, answers)) >= 15


@pytest.mark.slow
def test_data_larger_than_memory(process, tmp_path):
    """Of more than 16 MB, so that they are stored; read in the first training alone."""
    with (tmp_path / "facts.jsonl").open("w") as file:
        for i in range(20_000):
            file.write(
                json.dumps({"text": f"The number {i} is {'odd' if i % 2 else 'even'}. " * 35})
            )
            file.write("\n")
    flags = ("--tokenizer", "char", "--max-steps", "3", "--cache", "cache", *SMALL)
    first = process("train", "facts.jsonl", "--out", "a", *flags)
    assert first.status == 0
    assert "20,000 texts, 0 dialogues; of the beginning, " in first.err
    assert re.search(r"validation: 2\d\d texts", first.err)  # a quarter of a million characters
    (place,) = (tmp_path / "cache").iterdir()
    written = {file: file.stat().st_mtime_ns for file in place.iterdir()}
    assert sum(file.suffix == ".ids" for file in written) == 1
    assert process("train", "facts.jsonl", "--out", "b", *flags).status == 0
    assert {file: file.stat().st_mtime_ns for file in place.iterdir()} == written
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert models[0] == models[1]
    # One that was stopped goes on with them, but not with others.
    stopped = ("train", "facts.jsonl", "--out", "c", *flags[:3], "2000", *flags[4:])
    running = start(*stopped, "--save-every", "0.2s", "--validation-share", "0", cwd=tmp_path)
    with running:
        until = time.monotonic() + 60
        while not (tmp_path / "c" / "training.json").exists() and time.monotonic() < until:
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)
    assert running.returncode == 130
    (tmp_path / "elsewhere").mkdir()
    rest = start("train", "--resume", "../c", "--save-every", "0", cwd=tmp_path / "elsewhere")
    with rest:
        time.sleep(3)
        rest.send_signal(signal.SIGINT)
        err = rest.communicate(timeout=60)[1].decode()
    assert (rest.returncode, "going on with the pre-training" in err) == (130, True)
    assert {file: file.stat().st_mtime_ns for file in place.iterdir()} == written
    (tmp_path / "facts.jsonl").write_text('{"text": "All is other."}\n')
    changed = process("train", "--resume", "--out", "c")
    assert (changed.status, "have changed since it began" in changed.err) == (1, True)
