"""The nodes' public API only grows."""
import copy
import json

import node_api


def test_the_api_only_grows():
    old, new = json.loads(node_api.SNAPSHOT.read_text(encoding="utf-8")), json.loads(json.dumps(node_api.current()))
    assert node_api.breaks(old, new) == []
    assert new == old, "it grew: run tools/node_api.py and say so in the CHANGELOG"


def test_what_breaks_a_saved_workflow_is_found():
    old = json.loads(node_api.SNAPSHOT.read_text(encoding="utf-8"))
    for change in (lambda n: n.pop("PURE_BuildBasis"), lambda n: n["PURE_BuildBasis"]["inputs"].reverse(), lambda n: n["PURE_BuildBasis"]["inputs"][2].__setitem__(2, "energy"),
                   lambda n: n["PURE_ApplyProjection"]["outputs"].pop()):
        new = copy.deepcopy(old)
        change(new)
        assert len(node_api.breaks(old, new)) == 1
    grown = copy.deepcopy(old)
    grown["PURE_BuildBasis"]["inputs"].append(["more", "INT", 0])
    assert node_api.breaks(old, grown) == []
