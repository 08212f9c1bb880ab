"""Draws the thumbnails of the example workflows: each is run on the miniature model, and its pictures are laid side by
side above its name.

python thumbnails.py [NAME ...]        (in tools/)
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import workflows
from comfyui_server import Server
from get_comfyui import Host
from mini_sd.layout import install_checkpoint, install_wan

CELL, GAP, STRIP = 256, 8, 48


def thumbnail(pictures: list[Path], name: str) -> Image.Image:
    """Pictures of one height in a row, and the example's name below."""
    shown = []
    for path in pictures:
        with Image.open(path) as picture:
            width = round(picture.width * CELL / picture.height)
            shown.append(picture.convert("RGB").resize((width, CELL), Image.Resampling.NEAREST))
    out = Image.new("RGB", (sum(p.width + GAP for p in shown) - GAP, CELL + STRIP), "white")
    at = 0
    for picture in shown:
        out.paste(picture, (at, 0))
        at += picture.width + GAP
    draw, title = (
        ImageDraw.Draw(out),
        name.replace("_", " ").replace("sdxl", "SDXL").replace("wan", "Wan").replace("lora", "LoRA"),
    )
    font = next(
        font
        for font in map(ImageFont.load_default, range(30, 0, -1))
        if draw.textlength(title, font) <= out.width - 2 * GAP
    )
    draw.text((out.width / 2, CELL + STRIP / 2), title, fill="black", anchor="mm", font=font)
    return out


def shown(name: str, graph: dict, outputs: dict) -> list[dict]:
    """The pictures that say what an example does: before and after, as it shows them."""
    if name == "tune_the_amount":  # of each amount the first of three seeds
        return outputs[workflows.find(graph, "SaveImage")[0]]["images"][::3]
    compared = workflows.find(graph, "PURE_CompareImages")
    if compared:
        return [outputs[compared[0]]["images"][0]]
    told = [out for out in outputs.values() if any("Still there?" in text for text in out.get("text", []))]
    return [out["images"][0] for out in told] or [outputs[i]["images"][0] for i in workflows.find(graph, "SaveImage")]


def main() -> None:
    install_checkpoint(Host.load().base)
    install_wan(Host.load().base)
    with Server() as server:
        info = server.get("/object_info")
        for name in sys.argv[1:] or workflows.names():
            graph = workflows.to_api(workflows.substitute(workflows.load(name)), info)
            server.post("/free", {"unload_models": True, "free_memory": True})  # so that all of it runs and shows
            pictures = [server.file(image) for image in shown(name, graph, server.run(graph))]
            thumbnail(pictures, name).save(workflows.EXAMPLES / f"{name}.jpg", quality=88)
            print(name, len(pictures))


if __name__ == "__main__":
    main()
