"""The public API of the nodes: ids, inputs in order with types and defaults, outputs. A test lets the written one only
grow.

python node_api.py        (in tools/; writes tests/nodes/api.json)
"""

from __future__ import annotations

import json

import inprocess
import pack

OF_THE_HOST = ("sampler_name", "scheduler", "name")  # lists that are other ones in every ComfyUI
SNAPSHOT = pack.PROJECT / "tests" / "nodes" / "api.json"


def current() -> dict:
    """node id -> inputs [[id, type, default, optional, choices], ...] and outputs [[name, type], ...].

    Choices are null where the host has them.
    """
    out = {}
    for schema in inprocess.schemas():
        inputs = [
            [
                i.id,
                i.get_io_type(),
                getattr(i, "default", None),
                bool(i.optional),
                None if i.id in OF_THE_HOST else getattr(i, "options", None),
            ]
            for i in schema.inputs
        ]
        out[schema.node_id] = {"inputs": inputs, "outputs": [[o.display_name, o.get_io_type()] for o in schema.outputs]}
    return out


def breaks(old: dict, new: dict) -> list[str]:
    """What a workflow saved with the old API would stumble over.

    outputs, choices, and inputs that need no value may be added at the end, nodes anywhere.
    """
    found = []
    for node, was in old.items():
        now = new.get(node)
        if now is None:
            found.append(f"{node} is gone")
            continue
        if now["outputs"][: len(was["outputs"])] != was["outputs"]:
            found.append(f"{node}: outputs {was['outputs']} became {now['outputs']}")
        kept = [i[:4] for i in now["inputs"][: len(was["inputs"])]]
        if kept != [i[:4] for i in was["inputs"]]:
            found.append(f"{node}: inputs {was['inputs']} became {now['inputs']}")
        offered = {i[0]: i[4] or [] for i in now["inputs"]}
        found += [
            f"{node}: {i[0]} no longer offers {choice!r}"
            for i in was["inputs"]
            for choice in i[4] or []
            if choice not in offered.get(i[0], [choice])
        ]
        found += [
            f"{node}: {i[0]} is new and has no value in an old workflow"
            for i in now["inputs"][len(was["inputs"]) :]
            if not i[3] and i[2] is None
        ]
    return found


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
