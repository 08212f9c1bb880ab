"""Drives the real web UI in a Chromium, as a user does: load a workflow, press Run, look at what the nodes show."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from playwright.sync_api import Browser as Chromium
from playwright.sync_api import Page, TimeoutError, sync_playwright

from comfyui_server import Server
from get_comfyui import find_chromium

DESKTOP, LAPTOP = (1920, 1080), (1366, 768)
OPEN_SECONDS = 120
QUIET = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.VueNodes.Enabled": False,
    "Comfy.Locale": "en",  # nothing over the canvas
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.0,
    "LiteGraph.Canvas.MinFontSizeForLOD": 0,  # texts at any zoom
    "LiteGraph.Canvas.MaximumFps": 5,
}  # without a GPU, drawing the canvas takes the sampler's time

WATCH = """() => {
  const seen = window.seen = {ended: 0, error: null, interrupted: 0, titles: [], texts: {}, steps: []};
  const api = app.api, on = (kind, what) => api.addEventListener(kind, ({detail}) => what(detail));
  on('execution_success', () => seen.ended++);
  on('execution_error', d => { seen.error = d.exception_message; seen.ended++; });
  on('execution_interrupted', () => { seen.interrupted++; seen.ended++; });
  on('progress', d => seen.steps.push([String(d.node), d.value, d.max]));
  on('progress_text', d => (seen.texts[d.nodeId] ??= []).push(d.text));
  const titles = new MutationObserver(() => seen.titles.push(document.title));
  titles.observe(document.querySelector('title'), {childList: true});
}"""
READY = (
    "!!(window.app?.extensionManager && document.querySelector('[data-testid=queue-button]') && app.graph && "
    "LiteGraph.registered_node_types.PURE_BuildBasis && app.extensionManager.workflow.activeWorkflow)"
)
DRAWN = "app.graph.nodes.every(n => n.boundingRect[2] > 0)"  # boxes are measured when a node is drawn
LOADED = """() => app.canvas.visible_nodes.every(n =>
  (n.imgs ?? []).filter(i => i.complete && i.naturalWidth).length >= (app.nodeOutputs[n.id]?.images ?? []).length)"""
NODES = """() => app.graph.nodes.map(n => ({
  id: String(n.id), type: n.type, title: n.title, box: Array.from(n.boundingRect), errors: !!n.has_errors,
  registered: n.type in LiteGraph.registered_node_types || !!n.isSubgraphNode?.(),
  pictures: (n.imgs ?? []).filter(i => i.complete && i.naturalWidth).length,
  text: n.widgets?.find(w => w.name === '$$node-text-preview')?.value ?? ''}))"""


def faults(errors: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What the console and uncaught exceptions said of this pack.

    The frontends have errors of their own, and ask servers that tests do not reach.
    """
    # A help page is asked for in the language first, and then without one.
    ours = [e for e in errors if "pure" in "".join(e).lower() and "api.comfy.org" not in e[0]]
    return [e for e in ours if not ("404" in e[0] and "/docs/" in e[1] and e[1].endswith(("/en.md", "/zh.md")))]


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    """This machine's Chromium, headless; one at a time in a process."""
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"] if root else [])
        yield running
        running.close()


class Browser:
    """The web UI of a running server in a page of a Chromium.

    settings: the user's, QUIET unless others are given. errors: what the console and uncaught exceptions said, (text,
    address).
    """

    def __init__(
        self,
        running: Chromium,
        server: Server,
        size: tuple[int, int] = DESKTOP,
        shots: Path | None = None,
        settings: Mapping[str, object] = QUIET,
    ):
        self.shots = shots
        self.errors: list[tuple[str, str]] = []
        server.post("/settings", dict(settings))
        self.page: Page = running.new_page(viewport={"width": size[0], "height": size[1]})
        self.page.on(
            "console", lambda m: self.errors.append((m.text, m.location.get("url", ""))) if m.type == "error" else None
        )
        self.page.on("pageerror", lambda e: self.errors.append((f"{e}\n{e.stack}", "")))
        self.page.goto(server.url)
        self.ready()

    def ready(self) -> None:
        """Waits until the page can be used, the last workflow being open again, and listens to what the server tells
        it."""
        self.page.wait_for_function(READY, timeout=OPEN_SECONDS * 1000)
        self.page.wait_for_timeout(500)
        banner = self.page.locator("div:has(> button:text('Try it out')) + button")
        if banner.count():
            banner.click()  # the cross of an advertisement that covers the top
        self.page.evaluate(WATCH)

    def reload(self) -> None:
        """As F5."""
        self.page.reload()
        self.ready()

    def load(self, workflow: dict, name: str) -> None:
        """Opens a workflow as the templates dialog does."""
        self.page.evaluate("([w, name]) => app.loadGraphData(w, true, true, name)", [workflow, name])
        self.page.wait_for_timeout(300)
        self.page.wait_for_function(DRAWN)

    def saved_again(self, name: str) -> list[dict]:
        """The graph as Save writes it, and as it is written after that file was opened."""
        save = "JSON.parse(JSON.stringify(app.graph.serialize()))"
        first = self.page.evaluate(save)
        self.load(first, name)
        return [
            {k: v for k, v in graph.items() if k in ("nodes", "links", "groups", "definitions")}
            for graph in (first, self.page.evaluate(save))
        ]

    def fit(self) -> None:
        """Shows all of the graph."""
        self.page.evaluate(
            "(() => { app.canvas.deselectAll(); app.extensionManager.command.execute('Comfy.Canvas.FitView') })()"
        )  # it fits what is selected, if anything is
        self.page.wait_for_timeout(600)

    def press_run(self) -> None:
        inside = self.page.get_by_test_id("queue-button").get_by_role("button", name="Run", exact=True)
        inside.or_(
            self.page.locator("button[data-testid=queue-button]")
        ).first.click()  # newer frontends put the name on the button itself

    def wait_for_end(self, runs: int, seconds: float = 600) -> dict:
        """What was seen until that many runs had ended, since the page was opened."""
        self.page.wait_for_function("runs => seen.ended >= runs", arg=runs, timeout=seconds * 1000)
        self.drawn()
        self.page.wait_for_function(LOADED)
        return self.page.evaluate("seen")

    def run(self, seconds: float = 600) -> dict:
        """Presses Run and returns what was seen meanwhile: titles of the page, texts on nodes, progress steps.

        Raises RuntimeError on an error.
        """
        before = self.page.evaluate(
            "(() => { seen.titles = []; seen.texts = {}; seen.steps = []; seen.error = null; return seen.ended })()"
        )
        self.press_run()
        seen = self.wait_for_end(before + 1, seconds)
        if seen["error"]:
            raise RuntimeError(seen["error"])
        return seen

    def nodes(self) -> list[dict]:
        """What stands on the canvas: id, type, title, box (x, y, width, height with title), pictures and text shown."""
        return self.page.evaluate(NODES)

    def prompt(self) -> dict:
        """The API graph that Run would queue, without the titles."""
        graph = self.page.evaluate("app.graphToPrompt().then(p => p.output)")
        return {i: {k: v for k, v in node.items() if k != "_meta"} for i, node in graph.items()}

    def add(self, kind: str) -> str:
        """Puts one node on the canvas, selected; returns its id."""
        return str(
            self.page.evaluate(
                (
                    "kind => { const n = LiteGraph.createNode(kind); n.pos = [500, 300]; app.graph.add(n); "
                    "app.canvas.ds.scale = 1; app.canvas.ds.offset = [0, 0]; app.canvas.selectItems([n]); return "
                    "n.id }"
                ),
                kind,
            )
        )

    def drop_from_search(self, title: str, at: tuple[int, int] = (700, 400), words: str = "") -> int:
        """Double-clicks an empty place of the canvas, types words (the title, where none are given), takes the first
        result of that title, and puts it down there. Returns how often the mouse was clicked."""
        for _ in range(10):
            self.page.mouse.dblclick(*at)
            with contextlib.suppress(TimeoutError):
                self.page.wait_for_function("document.activeElement?.tagName === 'INPUT'", timeout=6000)
                break  # where the machine is busy, the two clicks may come too far apart to be one double click
        else:
            raise RuntimeError("The search for nodes did not open.")
        self.page.keyboard.type(words or title, delay=20)
        before = self.page.evaluate("app.graph.nodes.length")
        self.page.locator(".p-autocomplete-option, [data-testid=result-item]", has_text=title).first.click()
        self.page.wait_for_function("before => app.graph.nodes.length > before", arg=before)
        self.page.wait_for_function("document.activeElement?.tagName !== 'INPUT'")
        hangs = self.page.evaluate("app.canvas.state?.ghostNodeId != null")  # on the pointer, in newer frontends
        if hangs:
            self.page.mouse.move(*at)
            self.page.mouse.click(*at)
        return 3 + bool(hangs)

    def look_at(self, x: float = 0, y: float = 0) -> None:
        """Puts a place of the canvas into the upper left corner, at full size, and waits until that is drawn."""
        self.page.evaluate("([x, y]) => { app.canvas.ds.scale = 1; app.canvas.ds.offset = [-x, -y] }", [x, y])
        self.drawn()

    def drawn(self) -> None:
        """Waits until the canvas was drawn anew."""
        frame = self.page.evaluate("(() => { app.canvas.setDirty(true, true); return app.canvas.frame })()")
        self.page.wait_for_function("frame => app.canvas.frame > frame + 1", arg=frame)

    def clear(self) -> None:
        self.page.evaluate("app.graph.clear()")

    def shot(self, name: str) -> None:
        """Keeps a screenshot, if there is a folder for them."""
        if self.shots:
            self.shots.mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=self.shots / f"{name}.png")
