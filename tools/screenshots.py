"""Makes the pictures of the help pages from the real web UI, after runs of the examples on the miniature model.

python screenshots.py [NODE_ID ...]        (in tools/; with ids those of these pages alone)
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import workflows
from browser import DRAWN, Browser, chromium
from comfyui_server import Server
from get_comfyui import PROJECT, Host
from mini_sd.layout import install_checkpoint

SIZE = (2440, 1210)  # of the page
PAGES = PROJECT / "web" / "docs"
CORNER, MARGIN = (500, 120), 12  # where a node is put to be taken, in pixels of the page; what is taken around it
WIDTH = 260  # of a node at least, that its title is whole


def take(ui: Browser, target: Path, clip: dict | None = None) -> None:
    ui.page.wait_for_timeout(1500)
    ui.page.screenshot(path=target, clip=clip)
    with Image.open(target) as picture:
        picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(target, optimize=True)


def take_node(ui: Browser, node: str, target: Path) -> None:
    """One node of the graph by its id, as large as it is."""
    ui.page.wait_for_function(DRAWN)
    x, y, width, height = ui.page.evaluate(
        """([id, corner, width]) => {
      const node = app.graph.nodes.find(n => String(n.id) === id);
      node.setSize([Math.max(node.size[0], width), node.size[1]]);
      node.updateArea();
      const box = Array.from(node.boundingRect);
      const at = app.canvas.canvas.getBoundingClientRect();
      app.canvas.deselectAll();
      app.canvas.ds.scale = 1;
      app.canvas.ds.offset = [corner[0] - at.x - box[0], corner[1] - at.y - box[1]];
      app.canvas.setDirty(true, true);
      return [...corner, box[2], box[3]];
    }""",
        [node, list(CORNER), WIDTH],
    )
    ui.page.mouse.move(5, SIZE[1] - 5)
    take(ui, target, {"x": x - MARGIN, "y": y - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN})


def main() -> None:
    install_checkpoint(Host.load().base)
    missing = set(sys.argv[1:]) or {page.stem for page in PAGES.glob("*.md")}
    (PAGES / "pictures").mkdir(exist_ok=True)
    with Server() as server, chromium() as running:
        ui = Browser(running, server, SIZE)
        for name in workflows.names():
            workflow = workflows.substitute(workflows.load(name))
            if not missing & {n["type"] for n in workflow["nodes"]}:
                continue
            ui.load(workflow, name)
            ui.run()
            for node in ui.nodes():
                if node["type"] in missing:
                    take_node(ui, node["id"], PAGES / "pictures" / f"{node['type']}.png")
                    missing.discard(node["type"])
        for kind in sorted(missing):  # in no example
            ui.clear()
            take_node(ui, ui.add(kind), PAGES / "pictures" / f"{kind}.png")


if __name__ == "__main__":
    main()
