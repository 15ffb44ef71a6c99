"""A training that is stopped or killed goes on as if nothing had happened; what contradicts it."""

import contextlib
import json
import random
import shutil
import signal
import sys
import time

import pytest

import rustgpt
from rustgpt.cli import resume
from rustgpt.cli.terminal import clean

from .conftest import DIALOGUES, STATEMENTS, one_line, start

# Enough for some tenths of a second, and texts enough for many steps an epoch.
MANY = ("--batch-size", "2", "--pretrain-epochs", "12", "--tune-epochs", "12")
MANY += ("--save-every", "0.01s", "--keep", "2")
NOUNS = ("sun", "moon", "rain", "wind", "snow", "tide", "hail", "frost", "cloud", "storm")


@pytest.fixture
def many(tmp_path, small):
    """The flags of a training of some hundred steps."""
    texts = [f"The {one} follows the {other}" for one in NOUNS[:6] for other in NOUNS]
    chat = [f"User: What is {one}? Assistant: A kind of {one} weather </s>" for one in NOUNS]
    (tmp_path / "facts.json").write_text(json.dumps(texts))
    (tmp_path / "chat.json").write_text(json.dumps(chat * 4))
    return (*small, *MANY)


def files(folder):
    """Return what is in a folder; not the checkpoints before it, which depend on the clock."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def interrupted(flags, folder, number, steps):
    """Begin, or go on with, a training, and send it a signal some saved steps later."""
    begun = (folder / "config.json").exists()
    how = ("--resume",) if begun else flags
    until = steps + (state(folder)["steps"] if begun else 0)
    with start("train", *how, "--out", folder.name, cwd=folder.parent) as child:
        while child.poll() is None and (state(folder) or {"steps": 0})["steps"] < until:
            time.sleep(0.001)
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    assert b"Traceback" not in err
    return child.returncode


def state(folder):
    """Return how far the training in a folder is; None if nothing of it is there."""
    with contextlib.suppress(FileNotFoundError):  # as for a moment while it is replaced
        return json.loads((folder / "training.json").read_text())["state"]
    return None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
@pytest.mark.parametrize("threads", ["1", "2"])
def test_it_goes_on_as_if_nothing_had_happened(process, many, tmp_path, threads):
    flags = (*many, "--threads", threads)
    assert process("train", *flags, "--out", "whole").status == 0
    whole = files(tmp_path / "whole")
    assert set(whole) == {"config.json", "model.safetensors", "tokenizer.json", "training.json"}
    rng = random.Random(int(threads))
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        folder = tmp_path / f"stopped-{number}"
        found = [interrupted(flags, folder, number, rng.randrange(1, 100)) for _ in range(2)]
        assert found == [status] * 2
        assert process("train", "--resume", "--out", folder.name).status == 0
        assert files(folder) == whole


# In one process: stopped after a step


@pytest.fixture
def stopped(inside, small, monkeypatch, tmp_path):
    """stopped(step, *flags): train into the folder "run" until a step of all phases."""

    def run(step, *flags):
        count = rustgpt.Trainer._step

        def stop(self, *given):
            count(self, *given)
            if self.steps == step:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(rustgpt.Trainer, "_step", stop)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            done = inside("train", *small, "--batch-size", "1", "--out", "run", *flags)
        finally:
            signal.signal(signal.SIGINT, before)
            monkeypatch.setattr(rustgpt.Trainer, "_step", count)
        assert done.status == 130
        return tmp_path / "run"

    return run


@pytest.mark.parametrize("step", [1, 3, 5, 6, 7, 9])
def test_every_kind_of_place(inside, small, stopped, step, tmp_path):
    """The first step, mid-epoch and the end of an epoch and of a phase."""
    assert inside("train", *small, "--batch-size", "1", "--out", "whole").status == 0
    folder = stopped(step)
    done = inside("train", "--resume", "--out", "run")
    assert done.status == 0
    assert "going on" in done.err
    assert "BEFORE TRAINING" not in done.out
    assert "AFTER TRAINING" in done.out
    assert files(folder) == files(tmp_path / "whole")


def test_the_folder_may_be_named_after_resume(inside, stopped, monkeypatch):
    folder = stopped(3)
    assert inside("train", "--resume", "run").status == 0
    done = inside("train", "--resume", "run")
    assert (done.status, done.out) == (0, "")
    assert done.err == "rustgpt: the training in run is complete: rustgpt chat run\n"
    assert not (folder / "training.safetensors").exists()


def test_the_whole_job_goes_on_and_chats(inside, stopped):
    stopped(3)
    done = inside("--resume", "run", stdin=b"Who are you?\n")
    assert done.status == 0
    assert "AFTER TRAINING" in done.out
    done = inside("--resume", "run", stdin=b"Who are you?\n")
    answer = rustgpt.LLM.load("run").chat().send("Who are you?")
    assert done.out == f"{clean(answer)}\n"


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--batch-size", "2"], "--batch-size 2"),
        (["--n-layers", "7"], "--n-layers 7"),
        (["--seed", "5"], "--seed 5"),
        (["--no-output-bias"], "--output-bias False"),
        (["--tune-epochs", "9"], "--tune-epochs 9"),
        (["--chat", "other.json"], "--chat other.json"),
        (["--language", "en"], "--language en"),
        (["--init", "other"], "--init other"),
        (["--replay", "0.5"], "--replay 0.5"),
        (["--config", "run.toml"], "--tune-rate 0.5"),
        (["--overwrite"], "--overwrite"),
    ],
)
def test_what_contradicts_the_training_is_refused_by_name(inside, stopped, tmp_path, flags, named):
    folder = stopped(3)
    (tmp_path / "run.toml").write_text("[train]\nbatch_size = 1\ntune_rate = 0.5\n")
    before = files(folder)
    one_line(inside("train", "--resume", "--out", "run", *flags), 2, named)
    assert files(folder) == before


def test_what_agrees_with_the_training_is_not_refused(inside, small, stopped):
    stopped(3)
    assert inside("train", "--resume", "--out", "run", *small, "--batch-size", "1").status == 0


def test_other_threads_are_told_of(inside, stopped):
    folder = stopped(3)
    done = inside("train", "--resume", "run", "--threads", "2", "--save-every", "1m", "--keep", "1")
    assert done.status == 0
    assert "the threads were 1 and are now 2: the last bits of the result will be" in done.err
    assert json.loads((folder / "training.json").read_text())["notes"]["threads"] == 2


@pytest.mark.parametrize(("file", "texts"), [("facts", STATEMENTS), ("chat", DIALOGUES)])
def test_data_that_have_changed_are_refused(inside, stopped, tmp_path, file, texts):
    folder = stopped(3)
    before = files(folder)
    path = tmp_path / f"{file}.json"
    path.write_text(
        json.dumps([*texts[:-1], texts[-1].replace("small", "big").replace("雨", "雪")])
    )
    done = inside("train", "--resume", "--out", "run")
    one_line(done, 1, "have changed since it began", str(path), "--init run")
    path.write_text(json.dumps(texts[::-1]))
    one_line(inside("train", "--resume", "--out", "run"), 1, "have changed")
    path.unlink()
    one_line(inside("train", "--resume", "--out", "run"), 1, "cannot read", path.name)
    assert files(folder) == before
    path.write_text(json.dumps(texts))
    assert inside("train", "--resume", "--out", "run").status == 0


def test_a_folder_with_one_file_more_is_refused(inside, small, tmp_path, monkeypatch):
    (tmp_path / "notes").mkdir()
    for name, text in (("a.txt", "The sun rises."), ("b.txt", "Water is wet.")):
        (tmp_path / "notes" / name).write_text(text)
    step = rustgpt.Trainer._step

    def fail(self, *given):
        step(self, *given)
        raise MemoryError

    monkeypatch.setattr(rustgpt.Trainer, "_step", fail)
    assert inside("train", "notes", *small[4:], "--out", "run").status == 1
    monkeypatch.setattr(rustgpt.Trainer, "_step", step)
    (tmp_path / "other.txt").write_text("No.")
    one_line(inside("train", "other.txt", "--resume", "run"), 2, "PATH other.txt contradicts")
    (tmp_path / "notes" / "c.txt").write_text("Ants dig.")
    one_line(inside("train", "--resume", "run"), 1, "have changed", str(tmp_path / "notes"))
    (tmp_path / "notes" / "c.txt").unlink()
    assert inside("train", "notes", "--resume", "run").status == 0


def test_a_model_without_a_training_is_refused(inside, model, tmp_path):
    rustgpt.LLM.load(model).save("bare")
    one_line(inside("train", "--resume", "bare"), 1, "no state of its training", "--init bare")
    one_line(inside("train", "--resume", "none"), 1, "no model in none", "rustgpt train")
    rustgpt.Trainer(rustgpt.LLM.load(model)).save("python")
    one_line(inside("train", "--resume", "python"), 1, "Trainer.resume in Python")


def test_what_is_evaluated_last_is_on_disk(inside, small, tmp_path):
    """It is saved before the evaluation, and again after it, without a step in between."""
    texts = [f"The {one} follows the {other}" for one in NOUNS for other in NOUNS]
    (tmp_path / "facts.json").write_text(json.dumps(texts))
    flags = (*small[:2], *small[4:], "--validation-share", "0.2", "--pretrain-epochs", "1")
    assert inside("train", *flags, "--out", "run").status == 0
    written = json.loads((tmp_path / "run" / "training.json").read_text())
    assert written["state"]["epoch"] == 1
    assert [found["step"] for found in written["evaluations"]] == [written["state"]["step"]]
    assert "training.safetensors" not in files(tmp_path / "run")


# Damage


def test_every_kind_of_damage_is_refused_with_its_reason(inside, stopped):
    folder = stopped(3)
    whole = files(folder)
    assert "training.safetensors" in whole
    rng = random.Random(3)
    for name, content in whole.items():
        places = sorted({0, len(content) - 1, *rng.sample(range(len(content)), 8)})
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            for damaged in (bytes(flipped), content[:place]):
                if damaged + b"\n" == content:  # JSON without its last line's end is the same
                    continue
                (folder / name).unlink()
                (folder / name).write_bytes(damaged)
                done = inside("train", "--resume", "--out", "run")
                one_line(done, 1, f"run/{name}")
                if name.startswith("training."):  # a chat does not read it
                    rustgpt.LLM.load(folder)
        (folder / name).write_bytes(content)
    (folder / "training.safetensors").unlink()
    one_line(inside("train", "--resume", "--out", "run"), 1, "training.safetensors is missing")


def test_the_last_good_checkpoint_is_offered_and_goes_on(inside, small, stopped, tmp_path):
    assert inside("train", *small, "--batch-size", "1", "--keep", "3", "--out", "whole").status == 0
    folder = stopped(8, "--save-every", "0.000001s", "--keep", "3")
    kept = sorted(path.name for path in folder.glob("step-*"))
    assert kept == ["step-00000005", "step-00000006", "step-00000007"]
    (folder / "training.safetensors").write_bytes(b"")
    (folder / kept[-1] / "model.safetensors").write_bytes(b"")
    done = inside("train", "--resume", "--out", "run")
    command = f"--resume {folder.name}/{kept[1]} --out run"
    one_line(done, 1, "run/training.safetensors is damaged", f"rustgpt train {command}")
    assert inside("train", *command.split()).status == 0
    written, whole = (files(path) for path in (folder, tmp_path / "whole"))
    notes = [json.loads(content.pop("training.json"))["state"] for content in (written, whole)]
    assert notes[0] == notes[1]
    assert written["model.safetensors"] == whole["model.safetensors"]


def test_from_a_kept_checkpoint_into_another_folder(inside, stopped, tmp_path):
    folder = stopped(8, "--save-every", "0.000001s", "--keep", "2")
    before = files(folder)
    one_line(inside("train", "--resume", "run", "--out", "run2", "--n-layers", "3"), 2, "n-layers")
    assert inside("train", "--resume", "run", "--out", "run2").status == 0
    assert files(folder) == before
    one_line(inside("train", "--resume", "run", "--out", "run2"), 2, "run2", "--overwrite")
    assert inside("train", "--resume", "run", "--out", "run2", "--overwrite").status == 0


def test_checkpoints_of_another_training_do_not_stay(inside, small, stopped):
    folder = stopped(8, "--save-every", "0.000001s", "--keep", "2")
    assert len(list(folder.glob("step-*"))) == 2
    assert inside("train", *small, "--out", "run", "--overwrite").status == 0
    assert not list(folder.glob("step-*"))


def test_notes_name_files_by_absolute_paths(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert resume._whole("chat", "a.json") == str(tmp_path / "a.json")
    assert resume._whole("chat", "-") == "-"
    assert resume._whole("chat", None) is None
    assert resume._whole("language", "en") == "en"
    assert resume._whole("replay", ["0.5", "a"]) == ["0.5", str(tmp_path / "a")]


def test_the_data_are_found_from_another_folder(inside, stopped, tmp_path, monkeypatch):
    stopped(3)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert inside("train", "--resume", "../moved").status == 0
