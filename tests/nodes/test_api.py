"""The nodes' public API only grows."""

import copy
import dataclasses
import json

import node_api
from pure_pack.nodes import sockets


def test_the_api_only_grows():
    old, new = json.loads(node_api.SNAPSHOT.read_text(encoding="utf-8")), json.loads(json.dumps(node_api.current()))
    assert node_api.breaks(old, new) == []
    assert new == old, "it grew: run tools/node_api.py and say so in the CHANGELOG"


def test_what_breaks_a_saved_workflow_is_found():
    old = json.loads(node_api.SNAPSHOT.read_text(encoding="utf-8"))
    for change in (
        lambda n: n.pop("PURE_BuildBasis"),
        lambda n: n["PURE_BuildBasis"]["inputs"].reverse(),
        lambda n: n["PURE_BuildBasis"]["inputs"][4].__setitem__(2, "energy"),
        lambda n: n["PURE_ApplyProjection"]["outputs"].pop(),
        lambda n: n["PURE_BuildBasis"]["inputs"][4][4].remove("energy"),
        lambda n: n["PURE_BuildBasis"]["inputs"][1].__setitem__(3, False),
        lambda n: n["PURE_BuildBasis"]["inputs"].append(["more", "MODEL", None, False, None]),
    ):
        new = copy.deepcopy(old)
        change(new)
        assert len(node_api.breaks(old, new)) == 1
    grown = copy.deepcopy(old)
    grown["PURE_BuildBasis"]["inputs"] += [["more", "INT", 0, False, None], ["other", "MODEL", None, True, None]]
    grown["PURE_BuildBasis"]["inputs"][4][4].append("a third rule")
    assert node_api.breaks(old, grown) == []


def test_search_words_reach_a_host_that_knows_them(monkeypatch):
    """ComfyUI 0.3.75 does not; newer ones have the field."""
    newer = dataclasses.make_dataclass("Schema", ["node_id", ("search_aliases", list)])
    monkeypatch.setattr(sockets.io, "Schema", newer)
    assert sockets.found_as("unlearn", "UCE") == {"search_aliases": ["unlearn", "UCE"]}
    monkeypatch.setattr(sockets.io, "Schema", dataclasses.make_dataclass("Schema", ["node_id"]))
    assert sockets.found_as("unlearn") == {}
