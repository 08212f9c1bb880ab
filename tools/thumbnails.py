"""Draws the thumbnails of the example workflows: each is run on the miniature model, and its saved pictures are laid side by side.

    python thumbnails.py [NAME ...]        (in tools/)
"""
from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import workflows
from comfyui_server import Server
from get_comfyui import Host
from mini_sd.layout import install_checkpoint

CELL, GAP = 256, 8


def thumbnail(pictures: list[Path]) -> Image.Image:
    """The first picture that each saver wrote, in a row."""
    out = Image.new("RGB", (len(pictures) * (CELL + GAP) - GAP, CELL), "white")
    for i, path in enumerate(pictures):
        with Image.open(path) as picture:
            out.paste(picture.convert("RGB").resize((CELL, CELL), Image.NEAREST), (i * (CELL + GAP), 0))
    return out


def main() -> None:
    install_checkpoint(Host.load().base)
    with Server() as server:
        info = server.get("/object_info")
        for name in sys.argv[1:] or workflows.names():
            graph = workflows.to_api(workflows.substitute(workflows.load(name)), info)
            outputs = server.run(graph)
            pictures = [server.file(outputs[i]["images"][0]) for i in workflows.find(graph, "SaveImage")]
            thumbnail(pictures).save(workflows.EXAMPLES / f"{name}.jpg", quality=88)
            print(name, len(pictures))


if __name__ == "__main__":
    main()
