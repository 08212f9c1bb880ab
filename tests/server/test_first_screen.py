"""Each example as a new user first sees it: the frontend's default settings, no click, desktop and laptop."""

import pytest

import workflows
from browser import DESKTOP, LAPTOP, QUIET, Browser
from get_comfyui import PROJECT

# What the frontend has where nobody chose anything; said explicitly, since other tests on this server say otherwise.
UNTOUCHED = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Locale": "en",
    "Comfy.Minimap.Visible": True,
    "LiteGraph.Canvas.LowQualityRenderingZoomThreshold": 0.6,
    "LiteGraph.Canvas.MinFontSizeForLOD": 8,
}
LEGIBLE = 7.9  # pixels: the size below which the canvas stops drawing letters is 8
SIZES = {"desktop": DESKTOP, "laptop": LAPTOP}
# Of the note and of each box to type in: which ends of its first lines are covered (on a small screen the
# frontend's map lies over the lower right), and the size of its letters.
SEEN = """() => {
  const read = (element, what) => {
    const box = element.getBoundingClientRect(), inset = 6, lines = 90;
    const left = box.left + inset, right = box.right - inset - 12, top = box.top + inset;
    const corners = [[left, top], [right, top], [left, Math.min(box.bottom - inset, box.top + lines)]];
    const covered = corners.filter(([x, y]) => {
      const shown = document.elementFromPoint(x, y);
      return !(shown && (element.contains(shown) || shown.contains(element))) });
    return {what, covered, letters: parseFloat(getComputedStyle(element).fontSize) * box.width / element.offsetWidth};
  };
  const shown = kind => [...document.querySelectorAll(kind)].filter(e => e.offsetWidth);
  const boxes = app.graph.nodes.filter(n => ['PURE_EraseConcept', 'PURE_ConceptPrompts'].includes(n.type)).flatMap(n =>
    ['forget', 'keep'].map(name => [n.widgets.find(w => w.name === name)?.value, `${n.type} ${name}`]));
  const found = boxes.map(([value, what]) => {
    const area = shown('textarea').find(e => e.value === value);
    return area ? read(area, what) : {what, covered: ['not on the page'], letters: 0} });
  const note = shown('.comfy-markdown, .comfy-markdown-content, .widget-markdown')[0];
  return [note ? read(note, 'note') : {what: 'note', covered: ['not on the page'], letters: 0}, ...found];
}"""


@pytest.fixture(scope="module", params=["as it is", "newer", "newer, Nodes 2.0"])
def frontend(request, running_chromium):
    """Its name and a page of it."""
    name = request.param
    server = request.getfixturevalue("server" if name == "as it is" else "newer_server")
    settings = {**UNTOUCHED, "Comfy.VueNodes.Enabled": name.endswith("2.0")}
    browser = Browser(running_chromium, server, settings=settings)
    yield name, browser
    browser.page.close()
    server.post("/settings", QUIET)  # of all servers with this base folder


@pytest.fixture(scope="module", params=SIZES)
def screen(request, frontend):
    name, browser = frontend
    browser.page.set_viewport_size(dict(zip(("width", "height"), SIZES[request.param], strict=True)))
    browser.shots = PROJECT / "test_output" / "first screen" / f"{name}, {request.param}"
    return browser


def seen(screen):
    screen.page.wait_for_timeout(300)
    return {part["what"]: part for part in screen.page.evaluate(SEEN)}


@pytest.mark.parametrize("name", workflows.names())
def test_the_note_and_the_boxes_to_type_in_are_in_sight_and_legible(screen, name):
    screen.load(workflows.substitute(workflows.load(name)), name)
    parts = seen(screen)
    screen.shot(name)
    assert len(parts) >= 3
    assert {what: part["covered"] for what, part in parts.items() if part["covered"]} == {}
    assert {what: part["letters"] for what, part in parts.items() if part["letters"] < LEGIBLE} == {}
    assert not screen.page.evaluate("app.canvas.low_quality")


def test_what_is_covered_or_too_small_is_found(screen):
    name = workflows.names()[0]
    screen.load(workflows.substitute(workflows.load(name)), name)
    move = "([scale, x]) => { const c = app.canvas; c.ds.scale = scale; c.ds.offset[0] += x; c.setDirty(true, true) }"
    screen.page.evaluate(move, [0.8, -52])
    assert len(seen(screen)["note"]["covered"]) == 2  # by the sidebar
    screen.page.evaluate(move, [0.7, 52])
    assert min(part["letters"] for part in seen(screen).values()) < LEGIBLE
