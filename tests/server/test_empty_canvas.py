"""From an empty canvas to an erasure, with the mouse and the keyboard alone: the clicks that it takes are counted."""

from browser import Browser

FORGET, KEEP = "miplo\nblue square creature with an antenna and one big eye", "zorbo\nbramby\nquistle"
SMALL = {
    "size": 64,
    "steps": 4,
    "cfg": 1.0,
    "batch_size": 16,
    "ordinary": "a red circle\na blue star\na green square at night",
}


class Hands:
    """A user's mouse and keyboard on a page. clicks: how often a button of the mouse went down."""

    def __init__(self, ui: Browser):
        self.ui, self.page, self.clicks = ui, ui.page, 0

    def find(self, words: str, title: str, at: tuple[int, int]) -> str:
        """Puts down the node of this title that the search shows for the words; returns its id."""
        known = {n["id"] for n in self.ui.nodes()}
        self.clicks += self.ui.drop_from_search(title, at, words)
        (new,) = [n["id"] for n in self.ui.nodes() if n["id"] not in known]
        return new

    def slot(self, node: str, name: str, inward: bool) -> tuple[float, float]:
        """Where the middle of a slot is on the page."""
        return tuple(
            self.page.evaluate(
                """([id, name, inward]) => {
                  const node = app.graph.nodes.find(n => String(n.id) === id), ds = app.canvas.ds;
                  const slots = inward ? node.inputs : node.outputs, i = slots.findIndex(s => s.name === name);
                  const at = inward ? node.getInputPos(i) : node.getOutputPos(i);
                  const box = app.canvas.canvas.getBoundingClientRect();
                  return [box.x + (at[0] + ds.offset[0]) * ds.scale, box.y + (at[1] + ds.offset[1]) * ds.scale];
                }""",
                [node, name, inward],
            )
        )

    def connect(self, source: str, output: str, target: str, name: str) -> None:
        self.page.mouse.move(*self.slot(source, output, False))
        self.page.mouse.down()
        self.page.mouse.move(*self.slot(target, name, True), steps=8)
        self.page.mouse.up()
        self.page.wait_for_function(
            "([id, name]) => app.graph.nodes.find(n => String(n.id) === id).inputs.find(i => i.name === name).link",
            arg=[target, name],
        )
        self.clicks += 1

    def write(self, placeholder: str, text: str) -> None:
        box = self.page.get_by_placeholder(placeholder)
        box.click()
        self.page.keyboard.type(text)
        self.clicks += 1


def lines_shown(ui: Browser) -> int:
    """How many lines the smallest box to type in shows."""
    heights = ui.page.evaluate("[...document.querySelectorAll('textarea')].map(e => e.offsetHeight).filter(h => h)")
    return min(heights) // 14


def graph_by_hand(ui: Browser) -> tuple[Hands, str]:
    """Load Checkpoint and PURE Erase Concept, wired and filled in; the hands that did it, and the eraser's id."""
    ui.clear()
    ui.look_at(0, 0)
    hands = Hands(ui)
    loader = hands.find("load checkpoint", "Load Checkpoint", (250, 250))
    erase = hands.find("erase", "PURE Erase Concept", (800, 250))
    for output, name in (("MODEL", "model"), ("CLIP", "clip"), ("VAE", "vae")):
        hands.connect(loader, output, erase, name)
    hands.write("what to erase", FORGET)
    hands.write("what must stay", KEEP)
    assert lines_shown(ui) >= 5
    inputs = ui.prompt()[erase]["inputs"]
    wired = {name: [loader, i] for i, name in enumerate(("model", "clip", "vae"))}
    assert {name: inputs[name] for name in ("model", "clip", "vae", "forget", "keep")} == {
        **wired,
        "forget": FORGET,
        "keep": KEEP,
    }
    return hands, erase


def test_erase_is_typed_two_nodes_are_wired_two_boxes_filled_and_it_runs(ui):
    hands, erase = graph_by_hand(ui)
    small = {**SMALL, "ckpt_name": "mini_sd.safetensors"}  # so that the miniature model is quick; a user leaves them
    ui.page.evaluate(
        "values => app.graph.nodes.flatMap(n => n.widgets ?? []).filter(w => w.name in values)"
        ".forEach(w => { w.value = values[w.name] })",
        small,
    )
    seen = ui.run()
    hands.clicks += 1
    told = seen["texts"][erase]
    assert any(text.startswith("Capturing") for text in told)
    assert [
        text for text in told if "is in another node" in text or text.startswith("Captured")
    ] == []  # its inner nodes
    shown = {n["id"]: n for n in ui.nodes()}[erase]
    assert shown["text"].startswith("Found clearly in 7 of 7 layers: miplo and 1 more.")
    assert shown["pictures"] == 1
    ui.shot("from an empty canvas")
    assert lines_shown(ui) >= 5  # still, beside what is shown now
    assert hands.clicks == 12


def test_a_newer_frontend_takes_the_same_hands(newer_ui):
    hands, _ = graph_by_hand(newer_ui)
    assert hands.clicks <= 13
