"""The first hour in the web UI, beyond the examples.

search, help, languages, cancelling, reports from the cache, saving a graph.
"""

import json

import numpy as np
import pytest
from PIL import Image

import workflows
from browser import DESKTOP, LAPTOP
from get_comfyui import PROJECT

NODES = sorted(path.stem for path in (PROJECT / "web" / "docs").glob("*.md"))


@pytest.fixture(params=["", "newer_"], ids=["the host's frontend", "a newer frontend"], scope="module")
def site(request):
    """A running server and its web UI, once with the frontend that the host ships and once with a newer one."""
    return request.getfixturevalue(f"{request.param}server"), request.getfixturevalue(f"{request.param}ui")


def pictures(server, outputs):
    """Saved pictures of a run, in the order of their nodes."""
    return [
        np.asarray(Image.open(server.file(i)), dtype=np.int16)
        for _, node in sorted(outputs.items())
        for i in node.get("images", [])
        if i["type"] == "output"
    ]


def small(seed=0, forget="miplo"):
    """The first example with few prompts and one picture each, and a seed of its own so that nothing comes from the
    cache."""
    workflow = workflows.substitute(workflows.load("step_by_step"))
    for node in workflow["nodes"]:
        if node["type"] == "PURE_ConceptPrompts":
            node["widgets_values"] = [forget, "zorbo\nbramby", "object or character", True, "{}\na picture of {}"]
        if node["type"] == "PURE_CaptureActivations":
            node["widgets_values"][:4] = [4, 4, 1, seed]
        if node["type"] == "KSampler":
            node["widgets_values"][2] = 4
    return workflow


def test_a_node_is_found_by_its_name_and_dropped_in(site):
    ui = site[1]
    ui.clear()
    ui.look_at(3000)
    ui.drop_from_search("PURE Build Basis")
    ui.page.wait_for_function("app.graph.nodes.length === 1 && app.graph.nodes[0].type === 'PURE_BuildBasis'")


@pytest.mark.parametrize("kind", NODES)
def test_the_help_panel_opens(site, kind):
    ui = site[1]
    ui.clear()
    ui.add(kind)
    ui.page.get_by_test_id("info-button").click()
    help_text = ui.page.locator(".node-help-content")
    help_text.wait_for()
    title, first = (PROJECT / "web" / "docs" / f"{kind}.md").read_text(encoding="utf-8").splitlines()[:3:2]
    ui.page.wait_for_function(
        "words => document.querySelector('.node-help-content')?.innerText.includes(words)",
        arg=first.split("`")[0].split("*")[0][:40].strip(),
    )
    assert title.lstrip("# ") in help_text.inner_text()
    ui.page.wait_for_function("[...document.querySelectorAll('.node-help-content img')].every(i => i.complete)")
    assert all(
        ui.page.evaluate("[...document.querySelectorAll('.node-help-content img')].map(i => i.naturalWidth > 0)")
    ), "a picture of the page is missing"
    ui.shot(f"help-{kind}")


def test_the_interface_speaks_each_language(newer_server, newer_ui):
    """On the newer frontend alone: 1.32 forgets the packs' translations when it loads a language (its pull request 7214
    mends that)."""
    server, ui = newer_server, newer_ui
    wanted = {
        code: json.loads((PROJECT / "locales" / code / "nodeDefs.json").read_text(encoding="utf-8"))
        for code in ("zh", "ja", "ko", "en")
    }
    assert len({texts["PURE_ApplyProjection"]["display_name"] for texts in wanted.values()}) == len(wanted)
    try:
        for code, texts in wanted.items():
            server.post("/settings", {"Comfy.Locale": code})
            ui.reload()
            ui.clear()
            for kind in NODES:
                ui.clear()
                ui.add(kind)
                node = ui.page.evaluate("""(() => {
                  const n = app.graph.nodes[0], others = ['control_after_generate', 'Comfy.upload'];
                  const own = (n.widgets ?? []).filter(w => !w.name.startsWith('$$') && !others.includes(w.name));
                  return {title: n.title, outputs: n.outputs.map(o => o.localized_name),
                          widgets: Object.fromEntries(own.map(w => [w.name, w.label ?? w.name]))} })()""")
                text = texts[kind]
                assert (node["title"], node["outputs"]) == (
                    text["display_name"],
                    [text["outputs"][i]["name"] for i in sorted(text["outputs"])],
                ), (code, kind)
                assert node["widgets"] == {name: text["inputs"][name]["name"] for name in node["widgets"]}, (code, kind)
            ui.shot(f"locale-{code}")
    finally:  # the tests after this one press buttons by their English names
        server.post("/settings", {"Comfy.Locale": "en"})
        ui.reload()


def test_a_graph_keeps_every_value_over_a_reload(site):
    ui = site[1]
    changed = small(seed=77)
    for node in changed["nodes"]:
        if node["type"] == "PURE_BuildBasis":
            node["widgets_values"] = ["energy", 0.987, 0.654, 12.3, "none", "per head", 5, 0.25]
        if node["type"] == "PURE_ApplyProjection":
            node["widgets_values"] = [0.35, "keys and values", 3, "middle"]
    ui.load(changed, "kept")
    before = ui.prompt()
    assert before["7"]["inputs"]["keep_weight"] == 12.3
    assert before["8"]["inputs"]["layers"] == "middle"
    ui.page.wait_for_timeout(1500)  # the frontend keeps a draft
    ui.reload()
    assert ui.prompt() == before


def test_cancelled_in_mid_capture_the_ui_is_usable_and_the_second_run_is_right(server, ui):
    """The cancelled run has so many steps that no machine has done them all when the button is pressed."""
    workflow = small(seed=11)
    for node in workflow["nodes"]:
        if node["type"] == "PURE_CaptureActivations":
            node["widgets_values"][:2] = [900, 900]
    ui.load(workflow, "cancelled")
    before = ui.page.evaluate(
        "(() => { seen.steps = []; return {ended: seen.ended, interrupted: seen.interrupted} })()"
    )
    ui.press_run()
    ui.page.wait_for_function("seen.steps.some(s => s[1] >= 3)")  # of whichever capture the host takes first
    ui.page.get_by_role("button", name="Cancel current run").click()
    after = ui.wait_for_end(before["ended"] + 1)
    assert after["interrupted"] == before["interrupted"] + 1
    done, total = after["steps"][-1][1:]
    assert 3 <= done < total
    ui.load(small(seed=11), "after it")
    ui.run()
    shown = pictures(server, ui.page.evaluate("app.nodeOutputs"))
    server.post("/free", {"unload_models": True, "free_memory": True})  # so that the twin is computed anew
    twin = pictures(server, server.run(ui.prompt()))
    assert len(shown) == len(twin) == 2
    assert all(np.array_equal(a, b) for a, b in zip(shown, twin, strict=True))
    assert np.abs(shown[0] - shown[1]).mean() > 2  # before and after


def test_reports_and_charts_are_shown_again_when_the_result_comes_from_the_cache(ui):
    ui.load(small(seed=12), "cached")
    ui.run()
    first = {n["id"]: (n["text"], n["pictures"]) for n in ui.nodes()}
    ui.page.wait_for_timeout(1500)
    ui.reload()
    assert not any(n["text"] or n["pictures"] for n in ui.nodes())
    seen = ui.run()
    assert seen["steps"] == []  # nothing was computed
    again = {n["id"]: (n["text"], n["pictures"]) for n in ui.nodes()}
    assert all(again[i] == first[i] and first[i][0] for i in ("4", "5", "7", "8"))
    assert again["7"][1] == 1


def test_a_report_follows_a_change_back_to_a_cached_setting(ui):
    """A text left over from another setting would be a lie."""
    ui.load(small(seed=12), "strength")
    ui.run()
    text = {n["id"]: n["text"] for n in ui.nodes()}["8"]
    assert "strength 1" in text
    ui.page.evaluate("app.graph.getNodeById(8).widgets.find(w => w.name === 'strength').value = 0.5")
    ui.run()
    assert "strength 0.5" in {n["id"]: n["text"] for n in ui.nodes()}["8"]


def test_the_files_for_languages_are_served(server):
    served = server.get("/i18n")
    for code in ("en", "zh", "ja", "ko"):
        mine = json.loads((PROJECT / "locales" / code / "nodeDefs.json").read_text(encoding="utf-8"))
        assert {k: served[code]["nodeDefs"][k] for k in mine} == mine


def test_a_graph_fits_a_laptop(site):
    ui = site[1]
    ui.page.set_viewport_size(dict(zip(("width", "height"), LAPTOP, strict=True)))
    try:
        ui.load(small(seed=12), "laptop")
        ui.fit()
        ui.shot("laptop")
        inside = ui.page.evaluate(
            "(() => { const [x, y, w, h] = app.canvas.ds.visible_area; return app.graph.nodes.every(n => "
            "n.boundingRect[0] >= x && n.boundingRect[1] >= y && n.boundingRect[0] + n.boundingRect[2] <= x + w "
            "&& n.boundingRect[1] + n.boundingRect[3] <= y + h) })()"
        )
        assert inside
    finally:
        ui.page.set_viewport_size(dict(zip(("width", "height"), DESKTOP, strict=True)))
