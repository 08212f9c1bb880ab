"""What flows between the nodes, and small helpers of their schemas."""

from __future__ import annotations

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..pure_core.errors import PureError
from .host.families import SINGLE_STREAM, listed

CATEGORY = "PURE"
Prompts = io.Custom("PURE_PROMPTS")  # pure_core.prompts.Prompts
Activations = io.Custom("PURE_ACTIVATIONS")  # pure_core.activations.Activations
Basis = io.Custom("PURE_BASIS")  # pure_core.basis.ConceptBasis
ERASE = ("unlearn", "erase concept", "forget concept", "remove concept")  # what people search for
RECIPE = (
    "Writes the prompts, settings and seed that made the edit into the file, so that it can be repeated. Anyone "
    "who has the file can read there what was erased. "
    "Off, or with ComfyUI's --disable-metadata, no prompts and settings are written, and %concept% is left out of the "
    "name."
)
PREFIX = (
    "Inside ComfyUI's output folder; %concept% becomes what is erased, a number is added, and no file is ever "
    "overwritten."
)
WORDS = (
    "Writes the concepts and prompts into the file. Off, or with ComfyUI's --disable-metadata, they are left out, and "
    "a basis that is built from the file does not know its concepts' names; %concept% is left out of the name, too."
)


def advanced(widget: io.Input) -> io.Input:
    """The same input, folded under the frontend's advanced inputs where it has those."""
    widget.extra_dict["advanced"] = True
    return widget


def experimental() -> io.Input:
    """The switch that captures of families on trial ask for."""
    return advanced(
        io.Boolean.Input(
            "experimental",
            default=False,
            tooltip=(
                f"Lets you erase from {listed(SINGLE_STREAM)}. Their text and picture share attention weights, so "
                "more of the concept stays, and other pictures change more. No other MODEL needs it."
            ),
        )
    )


def wire(kind: Any, name: str, tooltip: str, optional: bool = False) -> io.Input:
    """An input for one of the pack's own types.

    To the host it is optional: without that, a missing wire is only a red ring while the rest of the graph runs, and
    the pictures of the last run stay. `connected` says it in words instead. optional: it is so for the user, too.
    """
    return kind.Input(name, optional=True, tooltip=tooltip + (" Optional." if optional else ""))


def connected(node: type[io.ComfyNode], **wires: object) -> None:
    """Raises PureError, naming node and input, where one of these wires is missing."""
    for name, value in wires.items():
        if value is None:
            raise PureError(
                f"Nothing is connected to {name} of {node.define_schema().display_name}. Connect it and run again."
            )


def found_as(*words: str) -> dict[str, list[str]]:
    """The schema argument that lets the frontend's search find a node by other words.

    Nothing where the host does not know it (0.3.75 does not).
    """
    known = any(field.name == "search_aliases" for field in dataclasses.fields(io.Schema))
    return {"search_aliases": list(words)} if known else {}
