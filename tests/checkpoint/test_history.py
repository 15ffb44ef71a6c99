"""Tests of the checkpoints that are kept beside the last one."""

import os

import pytest

from rustgpt import CheckpointError, file_set, history

from .conftest import FILES, put, save, snapshot, which


def kept(folder):
    return [step for step, _ in history.earlier(folder)]


def test_a_checkpoint_is_kept_as_it_is_while_the_next_is_saved(model):
    history.keep(model, 1)
    files = snapshot(model / "step-00000001")
    save(model, 2)
    assert which(model) == 2
    assert which(model / "step-00000001") == 1
    assert snapshot(model / "step-00000001") == files
    assert sorted(files) == FILES


def test_it_costs_no_space_until_the_next_save(model):
    history.keep(model, 1)
    for name in FILES:
        assert os.path.samefile(model / name, model / "step-00000001" / name)


def test_where_there_are_no_links_it_is_copied(model, monkeypatch):
    def no_links(*_):
        raise OSError(95, "not supported")

    monkeypatch.setattr(os, "link", no_links)
    history.keep(model, 1)
    assert which(model / "step-00000001") == 1
    assert not os.path.samefile(model / FILES[1], model / "step-00000001" / FILES[1])


def test_a_set_whose_new_files_are_not_renamed_is_kept_whole(model, monkeypatch):
    """As a kill has left it after config.json was replaced."""

    def killed(*_):
        raise OSError(5, "killed")

    monkeypatch.setattr(file_set, "_rename", killed)
    save(model, 2)
    assert (model / (FILES[1] + ".new")).exists()
    history.keep(model, 7)
    monkeypatch.undo()
    assert which(model / "step-00000007") == 2
    assert sorted(snapshot(model / "step-00000007")) == FILES


def test_a_damaged_one_is_not_kept(model):
    put(model / FILES[1], b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        history.keep(model, 1)
    assert kept(model) == []


def test_what_a_kill_has_left_is_swept(model):
    (model / "step-00000001.new").mkdir()
    (model / "step-00000001.new" / "x").write_bytes(b"x")
    history.keep(model, 1)
    history.keep(model, 1)  # a second time it takes the first one's place
    assert kept(model) == [1]
    assert not list(model.glob("*.new"))


def test_the_newest_stay(model):
    for step in (9, 1, 120_000_000, 5, 7):
        history.keep(model, step)
    history.prune(model, 2, before=9)
    assert kept(model) == [7, 5]
    history.prune(model, 0, before=9)
    assert kept(model) == []


def test_folders_of_others_are_left_alone(model):
    for name in ("step-1", "step-00000001", "steps", "step-00000001x"):
        (model / name).mkdir()
    (model / "step-00000002").write_bytes(b"")
    history.prune(model, 0, before=9)
    assert len([path for path in model.iterdir() if path.name.startswith("step")]) == 5


def test_the_newest_whole_one_is_found(model):
    assert history.newest_whole(model) is None
    assert history.newest_whole(model / "none") is None
    for step in (1, 2, 3):
        history.keep(model, step)
    places = [model / f"step-0000000{step}" for step in (1, 2, 3)]
    assert history.newest_whole(model) == places[2]
    put(places[2] / FILES[0], b"{}")
    (places[1] / FILES[2]).unlink()
    assert history.newest_whole(model) == places[0]
    assert history.newest_whole(places[2]) == places[0]  # one of them stands for all
