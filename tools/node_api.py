"""The public API of the nodes: ids, inputs in order with types and defaults, outputs. A test lets the written one only grow.

    python node_api.py        (in tools/; writes tests/nodes/api.json)
"""
from __future__ import annotations

import json

import inprocess
import pack

SNAPSHOT = pack.PROJECT / "tests" / "nodes" / "api.json"


def current() -> dict:
    """node id -> inputs [[id, type, default], ...] and outputs [[name, type], ...]; choices of a list are part of its type where the pack owns them."""
    inprocess.start()
    import asyncio

    from pure_pack.nodes.extension import PureExtension

    out = {}
    for node in asyncio.run(PureExtension().get_node_list()):
        schema = node.GET_SCHEMA()
        inputs = [[i.id, i.get_io_type(), getattr(i, "default", None)] for i in schema.inputs]
        out[schema.node_id] = {"inputs": inputs, "outputs": [[o.display_name, o.get_io_type()] for o in schema.outputs]}
    return out


def breaks(old: dict, new: dict) -> list[str]:
    """What a workflow saved with the old API would stumble over; inputs and outputs may be added at the end, nodes anywhere."""
    found = []
    for node, was in old.items():
        now = new.get(node)
        if now is None:
            found.append(f"{node} is gone")
            continue
        for kind in ("inputs", "outputs"):
            if now[kind][: len(was[kind])] != was[kind]:
                found.append(f"{node}: {kind} {was[kind]} became {now[kind]}")
    return found


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(current(), indent=1) + "\n", encoding="utf-8")
