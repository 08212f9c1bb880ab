"""Every node has a help page that names each of its inputs and outputs, says what to change when it does not work, and
has a picture."""

import re
import struct

import pytest

import pack

NODES = {
    match: path.read_text(encoding="utf-8")
    for path in (pack.PROJECT / "nodes").glob("*.py")
    for match in re.findall(r'node_id="(PURE_\w+)"', path.read_text(encoding="utf-8"))
}


@pytest.mark.parametrize("page", sorted((pack.PROJECT / "web" / "docs").glob("*.md")), ids=lambda p: p.stem)
def test_the_page_is_a_nodes(page):
    assert page.stem in NODES


@pytest.mark.parametrize("node", sorted(NODES))
def test_the_node_has_a_page_that_names_its_inputs(node):
    page = (pack.PROJECT / "web" / "docs" / f"{node}.md").read_text(encoding="utf-8")
    schema = NODES[node].split(f'node_id="{node}"')[1].split("outputs=[")[0]
    inputs = re.findall(r'(?:Input\(\s*|wire\(\s*sockets\.\w+,\s*)"(\w+)"', schema)
    assert inputs
    cells = [
        cell for line in page.splitlines() if line.startswith("| ") for cell in re.findall(r"\w+", line.split("|")[1])
    ]
    assert not [i for i in inputs if i not in cells]
    outputs = re.findall(
        r'display_name="(\w+)"', NODES[node].split(f'node_id="{node}"')[1].split("outputs=[")[1].split("],")[0]
    )
    assert not [o for o in outputs if f"`{o}`" not in page]
    assert re.search(r"\*\*[^*]*\?|\*\*If ", page), "what to change when it does not work"
    assert f"(pictures/{node}.png)" in page
    width, height = struct.unpack(
        ">II", (pack.PROJECT / "web" / "docs" / "pictures" / f"{node}.png").read_bytes()[16:24]
    )  # PNG's header
    assert width >= 200, "a picture of the node, not of the empty canvas"
    assert height >= 80, "a picture of the node, not of the empty canvas"
