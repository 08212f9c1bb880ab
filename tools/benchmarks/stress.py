"""What the pack has to survive, in bounded and seeded runs: `python -m benchmarks.stress SECTION [--count N]` (in
tools/).

files: mutated and hostile basis files. saves: processes that save under one name at once. kills: a process that is
killed while it writes. graphs: random graphs in a real server, some of them cancelled. Small versions are tests.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COUNTS = {"files": 5000, "saves": 60, "kills": 50, "graphs": 60}
PROCESSES = 6
SAVER = """
import sys
sys.path[:0] = [{tools!r}]
import inprocess; inprocess.start()
import folder_paths, torch
from benchmarks.erasers import ApplyProjection, Eraser, BuildBasis, character_plan, run
from pure_pack.nodes.basis import SaveBasis
from pure_pack.nodes.export import SaveCheckpoint, SaveLoRA
folder_paths.set_output_directory({output!r})
with torch.inference_mode():
    eraser = Eraser(steps=2, recorded_steps=1)
    plan = character_plan("miplo", descriptions=0, neighbours=2, templates="{{}}")
    forget, retain = eraser.merged(plan.forget, "forget"), eraser.merged(plan.retain, "retain")
    basis = run(BuildBasis, forget=forget, keep=retain)[0]
    edited = run(ApplyProjection, model=eraser.model, basis=basis)[0]
    print("READY", flush=True)
    sys.stdin.readline()
    for _ in range({count}):
        run(SaveBasis, basis=basis, filename_prefix="basis")
        run(SaveLoRA, model=edited, filename_prefix="lora")
        if {checkpoints}:
            import inprocess as host
            model, clip, vae = host.load_checkpoint()
            run(SaveCheckpoint, model=run(ApplyProjection, model=model, basis=basis)[0], clip=clip, vae=vae,
                filename_prefix="checkpoint")
    print("DONE", flush=True)
"""


def saver(output: Path, count: int, checkpoints: bool) -> subprocess.Popen:
    """A process that waits for a line, then saves a basis and a LoRA (and a checkpoint) so often under one name."""
    tools = str(Path(__file__).resolve().parents[1])
    code = SAVER.format(tools=tools, output=str(output), count=count, checkpoints=checkpoints)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OMP_WAIT_POLICY": "passive"}, **pipes)


def await_line(process: subprocess.Popen, wanted: str) -> None:
    """Reads what a process says until it says this; raises where it ends first."""
    for line in process.stdout:
        if line.strip() == wanted:
            return
    raise RuntimeError(f"A process ended with {process.wait()} before it said {wanted}.")


def saves(count: int) -> dict[str, int]:
    """`count` saves of each kind by PROCESSES processes at once: how many files there are, of each kind."""
    with tempfile.TemporaryDirectory() as folder:
        each = max(1, count // PROCESSES)
        processes = [saver(Path(folder), each, checkpoints=i == 0 and count >= 60) for i in range(PROCESSES)]
        for process in processes:
            await_line(process, "READY")
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            await_line(process, "DONE")
            process.wait()
        names = [path.name for path in Path(folder).iterdir()]
    kinds = ("basis", "lora", "checkpoint")
    return {"saves of each kind": each * PROCESSES, **{k: sum(n.startswith(k) for n in names) for k in kinds}}


def kills(count: int) -> dict[str, int]:
    """Kills `count` processes at random times while they save: whole files, others, and what the next save leaves."""
    import inprocess

    inprocess.start()
    from pure_pack.pure_core.basis_file import load_basis
    from pure_pack.pure_core.errors import PureError

    rng, whole, broken, in_the_write = random.Random(0), 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            process = saver(Path(folder), 10_000, checkpoints=False)
            await_line(process, "READY")
            process.stdin.write("\n")
            process.stdin.flush()
            time.sleep(0.05 + 0.5 * rng.random())
            process.send_signal(signal.SIGKILL)
            process.wait()
            in_the_write += bool(list(Path(folder).glob(".pure-*.part/*")))
        for path in Path(folder).glob("basis*.safetensors"):
            try:
                load_basis(path)
                whole += 1
            except PureError:
                broken += 1
        process = saver(Path(folder), 1, checkpoints=False)
        await_line(process, "READY")
        process.stdin.write("\n")
        process.stdin.flush()
        await_line(process, "DONE")
        process.wait()
        left = len(list(Path(folder).glob(".*")))
    return {"kills": count, "in a write": in_the_write, "whole": whole, "broken": broken, "left after the next": left}


def files(count: int) -> dict[str, float]:
    """`count` mutated files and every hostile one: how many were refused in words; seconds and MB of the worst."""
    import psutil

    import pack
    from hostile import bombs, mutate

    pack.load()
    from pure_pack.pure_core.basis_file import load_basis
    from pure_pack.pure_core.errors import PureError

    fixture = (
        Path(__file__).resolve().parents[2] / "tests" / "core" / "fixtures" / "basis_version_2_contrast.safetensors"
    )
    data, rng, process = fixture.read_bytes(), random.Random(0), psutil.Process()
    out = {"mutated": count, "refused": 0, "bombs": 0, "bombs refused": 0, "worst s": 0.0, "worst MB": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.safetensors"
        for _ in range(count):
            path.write_bytes(mutate(data, rng))
            try:
                load_basis(path)
            except PureError:
                out["refused"] += 1
        for bomb in bombs(Path(folder)):
            before, began = process.memory_info().rss, time.monotonic()
            out["bombs"] += 1
            try:
                load_basis(bomb)
            except PureError:
                out["bombs refused"] += 1
            out["worst s"] = max(out["worst s"], time.monotonic() - began)
            out["worst MB"] = max(out["worst MB"], (process.memory_info().rss - before) / 2**20)
    return out


def graphs(count: int) -> dict[str, int]:
    """`count` random graphs in a real server, a third of them cancelled: how each ended, and the last picture again."""
    import numpy as np
    from PIL import Image

    import workflows
    from comfyui_server import Server, error_of
    from get_comfyui import Host
    from mini_sd.layout import install_checkpoint

    install_checkpoint(Host.load().base)
    rng, ended = random.Random(0), {"success": 0, "cancelled": 0, "refused in words": 0, "other": 0}
    with Server() as server:
        graph = workflows.to_api(workflows.substitute(workflows.load("step_by_step")), server.get("/object_info"))
        for i in workflows.find(graph, "SaveImage"):
            graph[i] = {"class_type": "PreviewImage", "inputs": {"images": graph[i]["inputs"]["images"]}}
        (lists,), captures = (
            workflows.find(graph, f"PURE_{kind}") for kind in ("ConceptPrompts", "CaptureActivations")
        )
        (build,), (apply,) = (workflows.find(graph, f"PURE_{kind}") for kind in ("BuildBasis", "ApplyProjection"))
        graph[lists]["inputs"] |= {"forget": "miplo", "templates": "a picture of {}"}

        def picture() -> np.ndarray:
            outputs = server.run(graph)
            last = workflows.find(graph, "PreviewImage")[-1]
            return np.asarray(Image.open(server.file(outputs[last]["images"][0])))

        fixed = {i: dict(graph[i]["inputs"]) for i in (lists, *captures, build, apply)}
        first = picture()
        for _ in range(count):
            graph[lists]["inputs"]["keep"] = "\n".join(rng.sample(workflows.NEIGHBOURS, rng.randrange(0, 4)))
            for i in captures:
                steps = rng.randrange(1, 6)
                graph[i]["inputs"] |= {"steps": steps, "recorded_steps": rng.randrange(1, 7), "seed": rng.randrange(9)}
            graph[build]["inputs"] |= {
                "rule": rng.choice(("contrast", "energy")),
                "keep_weight": rng.choice((0.0, 0.3, 3.0, 1e6)),
                "structure": rng.choice(("whole layer", "per head")),
                "centering": rng.choice(("none", "mean of keep")),
            }
            graph[apply]["inputs"] |= {"weights": rng.choice(("values", "keys and values", "output"))}
            prompt = server.queue(graph)
            if rng.random() < 0.33:
                time.sleep(2 * rng.random())
                server.post("/interrupt", {})
            entry = server.wait(prompt)
            error = "" if entry["status"]["status_str"] == "success" else error_of(entry)
            words = error.startswith("PureError") or "PureError" in str(entry["status"]["messages"])
            kind = "success" if not error else "cancelled" if error == "interrupted" else "other"
            ended["refused in words" if kind == "other" and words else kind] += 1
        for i, inputs in fixed.items():
            graph[i]["inputs"] = inputs
        same = bool(np.array_equal(first, picture()))
    return {"graphs": count, **ended, "the first graph draws the same again": same}


SECTIONS = {"files": files, "saves": saves, "kills": kills, "graphs": graphs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("section", choices=SECTIONS)
    parser.add_argument("--count", type=int, default=None)
    options = parser.parse_args()
    for what, value in SECTIONS[options.section](options.count or COUNTS[options.section]).items():
        print(f"{what}: {value if isinstance(value, (int, str)) else format(value, '.2f')}")


if __name__ == "__main__":
    main()
