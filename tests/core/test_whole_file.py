"""Files that are whole or not there, under a name that nobody else's file had."""

import errno
import multiprocessing
import os

import pytest
from pure_pack.pure_core import whole_file
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.whole_file import abandoned, new_file, next_name


def written(target, content=b"new"):
    with new_file(target) as file:
        file.part.write_bytes(content)
    return file.path


def test_an_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "x_00001_.bin") as file:
        file.part.write_bytes(b"half")
        (file.part.parent / ".tmp123").write_bytes(b"what a library writes beside it")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    assert written(tmp_path / "x_00001_.bin").read_bytes() == b"new"  # control
    assert [p.name for p in tmp_path.iterdir()] == ["x_00001_.bin"]


def test_a_name_that_is_taken_is_left_alone_and_the_next_number_used(tmp_path):
    (tmp_path / "x_00001_.bin").write_bytes(b"old")
    (tmp_path / "x_00002_.bin").write_bytes(b"old")
    assert written(tmp_path / "x_00001_.bin").name == "x_00003_.bin"
    assert [p.read_bytes() for p in sorted(tmp_path.iterdir())] == [b"old", b"old", b"new"]
    assert next_name(tmp_path / "x_99999_.bin").name == "x_100000_.bin"
    assert next_name(tmp_path / "plain.bin").name == "plain_00002_.bin"


def test_a_disk_without_hard_links_is_written_to_all_the_same(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    assert written(tmp_path / "x_00001_.bin").name == "x_00001_.bin"
    assert written(tmp_path / "x_00001_.bin", b"second").name == "x_00002_.bin"
    assert (tmp_path / "x_00001_.bin").read_bytes() == b"new"


def save_many(folder, count):
    for _ in range(count):
        written(folder / "x_00001_.bin", os.urandom(64))


def test_60_saves_of_6_processes_under_one_name_are_60_files(tmp_path):
    """With a name chosen first and taken by os.replace at the end, 37 of 60 were left."""
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=save_many, args=(tmp_path, 10)) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    files = [p.read_bytes() for p in tmp_path.iterdir()]
    assert len(files) == len(set(files)) == 60
    assert all(len(content) == 64 for content in files)


def test_a_disk_that_does_not_take_the_file_is_a_sentence(tmp_path):
    with pytest.raises(PureError, match="could not be written"), new_file(tmp_path / "x.bin") as file:
        file.part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "\ud800"])
def test_a_name_that_no_disk_takes_is_a_sentence(tmp_path, name):
    with pytest.raises(PureError, match="could not be written"):
        written(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_only_what_a_dead_process_of_this_machine_left_is_abandoned(tmp_path):
    mine, pid = whole_file.machine(), os.getpid()
    names = {
        "dead": f".pure-{mine}-999999999-0123abcd.part",
        "alive": f".pure-{mine}-{pid}-0123abcd.part",
        "another machine's": ".pure-0123-999999999-0123abcd.part",
        "a user's": ".pure-notes.part",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
    assert [p.name for p in abandoned(tmp_path, lambda other: other == pid)] == [names["dead"]]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_whoever_may_read_new_files_may_read_it(tmp_path, mask):
    """safetensors writes files that their owner alone may read: another user's WebUI could not open a LoRA."""
    before = os.umask(mask)
    try:
        with new_file(tmp_path / "x_00001_.bin") as file:
            file.part.write_bytes(b"new")
            file.part.chmod(0o600)
    finally:
        os.umask(before)
    assert file.path.stat().st_mode & 0o777 == 0o666 & ~mask
