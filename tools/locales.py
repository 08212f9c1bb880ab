"""Writes locales/en/nodeDefs.json from the nodes' own schemas: what the other languages translate, key by key.

python locales.py        (in tools/)
"""

from __future__ import annotations

import json

import inprocess
import pack

FOLDER = pack.PROJECT / "locales"
LANGUAGES = ("en", "zh", "ja", "ko")


def english() -> dict:
    """nodeDefs of every node: display name, description, and name and tooltip of inputs and outputs."""
    out = {}
    for schema in inprocess.schemas():
        inputs = {i.id: {"name": i.id, "tooltip": i.tooltip} for i in schema.inputs}
        outputs = {str(n): {"name": o.display_name, "tooltip": o.tooltip} for n, o in enumerate(schema.outputs)}
        out[schema.node_id] = {
            "display_name": schema.display_name,
            "description": schema.description,
            "inputs": inputs,
            **({"outputs": outputs} if outputs else {}),
        }
    return out


def load(language: str) -> dict:
    return json.loads((FOLDER / language / "nodeDefs.json").read_text(encoding="utf-8"))


def main() -> None:
    path = FOLDER / "en" / "nodeDefs.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(english(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
