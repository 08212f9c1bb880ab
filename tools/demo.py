"""Erases a character from the miniature model in a real ComfyUI server, and shows that it worked.

    nox -s demo                  # sets up what is needed, then runs this
    python tools/demo.py [--output FOLDER] [--pictures N]

Queues example_workflows/step_by_step.json over HTTP (checkpoint, prompts and sizes substituted by
workflows.SUBSTITUTIONS), then draws N pictures each of prompts that name the character, that only describe it, and that
ask for others, with the original and with the edited MODEL; a judge tells what they show. Leaves in the output folder:
before_after.png, report.json (its keys: REPORT_KEYS) and erased.safetensors, the edited checkpoint by the host's own
CheckpointSave.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from comfyui_server import Server
from get_comfyui import PROJECT, Host
from mini_sd import studio
from mini_sd.layout import install_checkpoint
from mini_sd.world import CHARACTERS
from workflows import find, load, substitute, to_api, upstream

ERASED = "miplo"
KINDS = ("named", "name_free", "others")
PER_PROMPT = 3  # pictures of one prompt in a batch
STEPS, CFG = 8, 4.0

REPORT_KEYS = {  # what report.json says
    "erased": "name of the erased character",
    "before": (
        "shares of the original MODEL's pictures in which the judge sees what the prompt asks, by kind of prompt: "
        "named and name_free (the erased character), others (each prompt's own character)"
    ),
    "after": "the same of the edited MODEL's pictures: near 0, near 0, near 1",
    "counts": "pictures of each kind, for each of the two MODELs",
    "scene_before": "shares of the original's named and name_free pictures with the background and style of the prompt",
    "scene_after": "the same of the edited MODEL: erased pictures are still pictures",
    "settings": "inputs of the capture, basis and apply nodes, and how the pictures were drawn",
    "ranks": "the basis report, a line per layer",
    "seconds": "setup (server start), edit (capture, basis, apply and the example's own pictures), pictures, save",
    "versions": "of Python, torch, ComfyUI and the system",
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=PROJECT / "demo_output")
    parser.add_argument(
        "--pictures", type=int, default=24, help="of each kind, for each of the two MODELs (default 24)"
    )
    options = parser.parse_args(argv)
    report = run(options.output, options.pictures)
    print(
        f"\nErased {report['erased']} in {report['seconds']['edit']:.0f} s. Seen as asked, before -> after, "
        f"{options.pictures} pictures each:"
    )
    for kind in KINDS:
        print(f"  {kind:10} {report['before'][kind]:.2f} -> {report['after'][kind]:.2f}")
    print(f"Look at {options.output / 'before_after.png'}")
    return 0


def run(output: Path, pictures: int) -> dict:
    """The whole demo; returns the report that it wrote."""
    output.mkdir(parents=True, exist_ok=True)
    host, seconds, start = Host.load(), {}, time.monotonic()
    install_checkpoint(host.base)

    def lap(name: str) -> None:
        nonlocal start
        seconds[name], start = round(time.monotonic() - start, 1), time.monotonic()

    with Server() as server:
        lap("setup")
        comfyui = server.get("/system_stats")["system"]["comfyui_version"]
        graph = to_api(substitute(load("step_by_step")), server.get("/object_info"))
        outputs = server.run(graph, progress=show_progress("erasing", graph))
        lap("edit")
        basis_report = outputs[find(graph, "PURE_BuildBasis")[0]]["text"][0]
        drawing, wanted = picture_graph(graph, pictures)
        drawn = server.run(drawing, progress=show_progress("drawing", drawing))
        images = {
            which: [image for i in range(len(wanted)) for image in read(server, drawn[f"{which}{i}"])]
            for which in ("before", "after")
        }
        lap("pictures")
        server.run(saving_graph(graph))
        newest = max(
            (server.base / "output" / "pure").glob("erased_*.safetensors"), key=lambda path: path.stat().st_mtime
        )
        shutil.move(newest, output / "erased.safetensors")
        lap("save")
    asked = [entry for entry in wanted for _ in range(PER_PROMPT)]
    report = {"erased": ERASED, "counts": {kind: sum(e["kind"] == kind for e in asked) for kind in KINDS}}
    for which, stack in images.items():
        report[which], report[f"scene_{which}"] = score(asked, studio.look(torch.stack(stack)))
    nodes = {
        graph[i]["class_type"]: {k: v for k, v in graph[i]["inputs"].items() if not isinstance(v, list)}
        for kind in ("PURE_CaptureActivations", "PURE_BuildBasis", "PURE_ApplyProjection")
        for i in find(graph, kind)
    }
    report["settings"] = {
        **nodes,
        "pictures": {
            "steps": STEPS,
            "cfg": CFG,
            "sampler": "euler",
            "scheduler": "normal",
            "prompts": "test set of tools/mini_sd/prompts.json",
        },
    }
    report["ranks"] = basis_report.splitlines()
    report["seconds"] = seconds
    report["versions"] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "comfyui": comfyui,
        "system": platform.platform(),
    }
    contact_sheet(asked, images).save(output / "before_after.png")
    (output / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report


def picture_graph(graph: dict, pictures: int) -> tuple[dict, list[dict]]:
    """A graph that draws test prompts of each kind with both MODELs of the example's graph.

    And the prompts, in order.
    """
    per_kind, test = pictures // PER_PROMPT, studio.prompts()["test"]
    others = [name for name in CHARACTERS if name != ERASED]
    wanted = [{**e, "kind": "named", "character": ERASED} for e in test["named"][ERASED][:per_kind]]
    wanted += [{**e, "kind": "name_free", "character": ERASED} for e in test["name_free"][ERASED][:per_kind]]
    wanted += [
        {**test["named" if i % 2 else "name_free"][others[i % 7]][i // 7], "kind": "others", "character": others[i % 7]}
        for i in range(per_kind)
    ]
    loader, edited = find(graph, "CheckpointLoaderSimple")[0], find(graph, "PURE_ApplyProjection")[0]
    out = upstream(graph, edited)
    out["empty"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [loader, 1], "text": ""}}
    out["latent"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": PER_PROMPT}}
    for i, entry in enumerate(wanted):
        out[f"text{i}"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": [loader, 1], "text": entry["prompt"]}}
        for which, model in (("before", loader), ("after", edited)):
            out[f"sample_{which}{i}"] = {
                "class_type": "KSampler",
                "inputs": {
                    "model": [model, 0],
                    "positive": [f"text{i}", 0],
                    "negative": ["empty", 0],
                    "latent_image": ["latent", 0],
                    "seed": entry["seed"],
                    "steps": STEPS,
                    "cfg": CFG,
                    "sampler_name": "euler",
                    "scheduler": "normal",
                    "denoise": 1.0,
                },
            }
            out[f"decode_{which}{i}"] = {
                "class_type": "VAEDecode",
                "inputs": {"samples": [f"sample_{which}{i}", 0], "vae": [loader, 2]},
            }
            out[f"{which}{i}"] = {"class_type": "PreviewImage", "inputs": {"images": [f"decode_{which}{i}", 0]}}
    return out, wanted


def saving_graph(graph: dict) -> dict:
    """The example's graph up to the edited MODEL, saved as a checkpoint by the host's own node."""
    loader, edited = find(graph, "CheckpointLoaderSimple")[0], find(graph, "PURE_ApplyProjection")[0]
    inputs = {"model": [edited, 0], "clip": [loader, 1], "vae": [loader, 2], "filename_prefix": "pure/erased"}
    return {**upstream(graph, edited), "save": {"class_type": "CheckpointSave", "inputs": inputs}}


def read(server: Server, output: dict) -> list[torch.Tensor]:
    """The pictures of a node's output, each (3, H, W) in 0..1."""
    return [
        torch.from_numpy(np.asarray(Image.open(server.file(i)).convert("RGB"), dtype=np.float32) / 255).permute(2, 0, 1)
        for i in output["images"]
    ]


def score(asked: list[dict], seen: list[dict]) -> tuple[dict, dict]:
    """Shares by kind of pictures that show the character asked for, and of erased-prompt pictures with background and
    style as asked."""

    def share(hits):
        return round(float(np.mean(list(hits))), 4)

    shown = {
        kind: share(s["character"] == e["character"] for e, s in zip(asked, seen, strict=True) if e["kind"] == kind)
        for kind in KINDS
    }
    erased = [(e, s) for e, s in zip(asked, seen, strict=True) if e["kind"] != "others"]
    return shown, {k: share(s[k] == e[k] for e, s in erased) for k in ("background", "style")}


def contact_sheet(
    asked: list[dict], images: dict[str, list[torch.Tensor]], columns: int = 8, cell: int = 96
) -> Image.Image:
    """Rows of pictures of each kind, the original MODEL's above the edited MODEL's; one picture per prompt."""
    titles = {
        "named": f"prompts that name {ERASED}",
        "name_free": f"prompts that only describe {ERASED}",
        "others": "prompts for other characters",
    }
    margin, head = 70, 28
    sheet = Image.new("RGB", (margin + columns * cell, 3 * (head + 2 * cell)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for row, kind in enumerate(KINDS):
        top = row * (head + 2 * cell)
        draw.text((6, top + 6), titles[kind], fill="black", font=font)
        chosen = [i for i, e in enumerate(asked) if e["kind"] == kind][::PER_PROMPT][:columns]
        for line, which in enumerate(("before", "after")):
            draw.text((6, top + head + line * cell + cell // 2 - 8), which, fill="black", font=font)
            for column, i in enumerate(chosen):
                picture = Image.fromarray(
                    (images[which][i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
                ).resize((cell - 4, cell - 4), Image.LANCZOS)
                sheet.paste(picture, (margin + column * cell, top + head + line * cell))
    return sheet


def show_progress(what: str, graph: dict):
    """A callback that prints how far the pack's nodes are, and how many of the graph's samplings are done."""
    shown, samplers, finished = {}, find(graph, "KSampler"), set()

    def progress(node: str, value: int, total: int) -> None:
        kind, fifth = graph.get(node, {}).get("class_type", ""), 5 * value // max(total, 1)
        if kind.startswith("PURE_") and shown.get(node) != fifth:
            shown[node] = fifth
            print(f"{what}: {kind} {100 * value // total} %", flush=True)
        elif kind == "KSampler" and value == total and node not in finished:
            finished.add(node)
            if len(finished) % 6 == 0 or len(finished) == len(samplers):
                print(f"{what}: {len(finished)} of {len(samplers)} samplings done", flush=True)

    return progress


if __name__ == "__main__":
    sys.exit(main())
