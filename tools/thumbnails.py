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
from mini_sd.layout import install_checkpoint

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
    draw, title = ImageDraw.Draw(out), name.replace("_", " ").replace("sdxl", "SDXL").replace("lora", "LoRA")
    font = next(
        font
        for font in map(ImageFont.load_default, range(30, 0, -1))
        if draw.textlength(title, font) <= out.width - 2 * GAP
    )
    draw.text((out.width / 2, CELL + STRIP / 2), title, fill="black", anchor="mm", font=font)
    return out


def main() -> None:
    install_checkpoint(Host.load().base)
    with Server() as server:
        info = server.get("/object_info")
        for name in sys.argv[1:] or workflows.names():
            graph = workflows.to_api(workflows.substitute(workflows.load(name)), info)
            outputs = server.run(graph)
            shown = workflows.find(graph, "PURE_CompareImages") or workflows.find(graph, "SaveImage")
            pictures = [server.file(outputs[i]["images"][0]) for i in shown]
            thumbnail(pictures, name).save(workflows.EXAMPLES / f"{name}.jpg", quality=88)
            print(name, len(pictures))


if __name__ == "__main__":
    main()
