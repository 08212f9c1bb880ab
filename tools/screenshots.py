"""Makes docs/web_ui.png: the first example in the real web UI, after a run on the miniature model.

    python screenshots.py        (in tools/)
"""
from __future__ import annotations

from pathlib import Path

from PIL import Image

import workflows
from browser import Browser, chromium
from comfyui_server import Server
from get_comfyui import PROJECT, Host
from mini_sd.layout import build_checkpoint

SIZE, SCALE, OFFSET = (2440, 1150), 0.95, (100, 0)  # of the page; of the canvas, so that texts are drawn


def main() -> None:
    build_checkpoint(Path(Host.load().base) / "models" / "checkpoints" / "mini_sd.safetensors")
    target = PROJECT / "docs" / "web_ui.png"
    with Server() as server, chromium() as running:
        ui = Browser(running, server, SIZE)
        ui.load(workflows.substitute(workflows.load("erase_a_character")), "erase_a_character")
        ui.run()
        ui.page.evaluate("([scale, offset]) => { app.canvas.ds.scale = scale; app.canvas.ds.offset = offset; app.canvas.setDirty(true, true) }", [SCALE, list(OFFSET)])
        ui.page.wait_for_timeout(1500)
        ui.page.screenshot(path=target)
    with Image.open(target) as picture:
        picture.convert("P", palette=Image.ADAPTIVE, colors=128).save(target, optimize=True)


if __name__ == "__main__":
    main()
