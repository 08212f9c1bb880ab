"""tools/erase.py: captures spread over real servers, one of which dies, and what comes of it."""

import http.client
import json
import re
import shlex
import subprocess
import threading
import time

import pytest
import torch
from PIL import Image
from pure_pack.pure_core.basis_file import load_basis

import erase
from comfyui_server import Client, Server, ServerError
from get_comfyui import PROJECT, Host
from spread import Part, Spread

CONCEPTS = "[forget]\nmiplo\n[keep]\nzorbo\nbramby\n[ordinary]\na red circle\na blue star\n"
SMALL = ("--size", "64", "--steps", "2", "--picture-steps", "1", "--no-checkpoint")


@pytest.fixture
def concepts(tmp_path):
    path = tmp_path / "miplo.txt"
    path.write_text(CONCEPTS, encoding="utf-8")
    return path


def erased(concepts, out, *servers):
    """Runs the tool; returns the folder of what it made."""
    command = ["mini_sd.safetensors", "--concepts", str(concepts), "--out", str(out), *SMALL, "--servers"]
    assert erase.main([*command, *(server.url for server in servers)]) == 0
    return out / "mini_sd" / "miplo"


def edits(folder):
    return {name: e.u.double() @ e.m.double().T for name, e in load_basis(folder / "basis.safetensors").sites.items()}


def test_a_server_that_dies_in_mid_capture_loses_nothing(server, base, concepts, tmp_path, capsys):
    alone = erased(concepts, tmp_path / "alone", server)
    capsys.readouterr()
    with Server(base, ("--temp-directory", str(tmp_path / "temp"))) as doomed:

        def kill_it_at_work():
            while not any("capture" in graph for _, _, graph, *_ in doomed.get("/queue")["queue_running"]):
                time.sleep(0.02)
            doomed.process.kill()

        threading.Thread(target=kill_it_at_work, daemon=True).start()
        together = erased(concepts, tmp_path / "together", doomed, server)
    told = capsys.readouterr().out
    report = json.loads((together / "report.json").read_text(encoding="utf-8"))
    lost = [label for label, done in report["captures"].items() if doomed.url in done.get("lost by", ())]
    assert len(lost) == 1
    assert f"{doomed.url} does not answer" in told
    assert f"{lost[0]} is repeated elsewhere" in told
    assert report["captures"][lost[0]]["server"] == report["built on"] == server.url
    assert set(report["captures"]) == {"forget: miplo", "keep: zorbo", "keep: bramby"}
    one, two = edits(alone), edits(together)
    for name, edit in one.items():
        assert (edit - two[name]).norm() < 1e-6 * edit.norm()
    assert Image.open(together / "before_after.png").size[0] > 3 * 64
    assert "and 2 ordinary pictures" in report["basis"]
    assert "lora_unet" in str((together / "lora.safetensors").read_bytes()[:2000])


def test_what_is_there_is_not_captured_again_and_another_setting_is(server, concepts, tmp_path, capsys):
    folder = erased(concepts, tmp_path, server)
    before = edits(folder)
    (lost,) = list((folder / "parts").glob("forget_*"))[:1]
    lost.unlink()  # as after an interruption
    capsys.readouterr()
    erased(concepts, tmp_path, server)
    told = capsys.readouterr().out
    assert "2 of 3 parts are there already" in told
    assert len(re.findall(r"^(forget|keep): .* s on ", told, re.MULTILINE)) == 1
    after = edits(folder)
    assert all(torch.allclose(before[n], after[n], rtol=0, atol=1e-6) for n in before)
    parts = [
        [part.target.name for part in erase.capture_parts("m", erase.Concepts.read(concepts), settings, tmp_path)]
        for settings in (erase.Settings(), erase.Settings(amount=0.7), erase.Settings(seed=4))
    ]
    assert parts[0] == parts[1]  # another amount is another basis of the same captures
    assert not set(parts[0]) & set(parts[2])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[forget]\nmiplo\n[keep]\nMiplo\n", "in both lists"),
        ("[keep]\nzorbo\n", "forget"),
        ("miplo\n", "has to begin with"),
    ],
)
def test_lists_that_cannot_be_used_end_in_a_sentence_before_anything_is_sampled(server, tmp_path, capsys, text, words):
    path = tmp_path / "bad.txt"
    path.write_text(text, encoding="utf-8")
    command = ["mini_sd.safetensors", "--concepts", str(path), "--out", str(tmp_path / "out"), "--servers", server.url]
    try:
        status, told = erase.main(command), ""
    except SystemExit as stopped:
        status, told = 1, str(stopped)
    assert status == 1
    assert words in told + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_with_no_server_the_sentence_says_what_to_do(concepts, tmp_path, capsys):
    command = ["mini_sd.safetensors", "--concepts", str(concepts), "--out", str(tmp_path), "--servers"]
    assert erase.main([*command, "http://127.0.0.1:9"]) == 1
    assert "No ComfyUI answers at http://127.0.0.1:9. Start one" in capsys.readouterr().err


def test_the_readmes_command_runs_as_it_is_written(server, concepts, tmp_path):
    (command,) = re.findall(r"`(python tools/erase\.py [^`]+)`", (PROJECT / "README.md").read_text(encoding="utf-8"))
    asked = {"python": Host.load().python, "my_model.safetensors": "mini_sd.safetensors", "concepts.txt": str(concepts)}
    words = [asked.get(word, word) for word in shlex.split(command)]
    words = [server.url if word.startswith("http://") else word for word in words]
    out = tmp_path / "out"
    done = subprocess.run([*words, "--out", str(out), *SMALL], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (out / "mini_sd" / "miplo").iterdir()) == [
        "basis.safetensors",
        "before_after.png",
        "lora.safetensors",
        "parts",
        "report.json",
    ]


def test_where_a_server_stops_answering_the_next_one_is_asked():
    class Answers(Client):
        def answers(self):
            return self.url not in gone

    def question(client):
        if client.url == "http://a":
            gone.add(client.url)
            raise ConnectionRefusedError("refused")
        return client.url

    gone, told = set(), []
    spread = Spread([], told.append)
    spread.clients = [Answers("http://a"), Answers("http://b")]
    assert spread.ask(question) == "http://b"
    assert told == ["http://a does not answer (refused); another one is asked."]
    gone.add("http://b")
    with pytest.raises(ServerError, match="No ComfyUI answers at http://a, http://b"):
        spread.ask(question)


def test_a_file_that_breaks_off_is_a_lost_server_and_a_fault_of_ours_stops_everyone(tmp_path):
    """Either would have left the other servers waiting for ever."""

    class Breaks(Client):
        def __init__(self, error):
            super().__init__("http://nowhere")
            self.error = error

        def queue(self, graph, client_id=""):
            raise self.error

    def spread_with(error):
        spread = Spread([], lambda line: None)
        spread.clients = [Breaks(error), Breaks(error)]
        spread.run([Part("one", {}, "a", "b", tmp_path / "missing")])

    with pytest.raises(ServerError, match="No server is left"):
        spread_with(http.client.IncompleteRead(b""))
    with pytest.raises(ZeroDivisionError):
        spread_with(ZeroDivisionError())
