"""The graph that PURE Erase Concept stands for.

The pack's other nodes, so that the host caches each of their results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from comfy_execution.graph_utils import GraphBuilder

from ...pure_core.errors import PureError
from .families import NATIVE_SIDE
from .sites import AttentionSite, family_name, is_unet

Link = list[Any]  # the host's [node id, output]


@dataclass(frozen=True)
class Erasure:
    """What is to be done: both lists and their kind, each node's settings, and pictures.

    keep, replace_with: may be empty. pictures: prompts to draw before and after; none where there is no VAE.
    """

    forget: str
    keep: str
    replace_with: str
    kind: str
    ordinary: dict[str, Any]
    capture: dict[str, Any]
    build: dict[str, Any]
    apply: dict[str, Any]
    pictures: str
    draw: dict[str, Any]


def links_of(hidden: Any) -> dict[str, Link]:
    """What is connected to the node that runs, by input: links of the graph it is part of."""
    inputs = hidden.dynprompt.get_node(hidden.unique_id)["inputs"]
    return {name: value for name, value in inputs.items() if isinstance(value, list)}


def native_size(model: Any, sites: list[AttentionSite]) -> int:
    """The side in pixels of pictures that a MODEL was trained for, a multiple of 64."""
    if is_unet(sites):
        return 512 if sites[0].context in (768, 1024) else 1024
    return NATIVE_SIDE.get(family_name(model), 1024)


def expand(erasure: Erasure, links: dict[str, Link]) -> tuple[dict[str, Any], dict[str, Link]]:
    """The graph, and where its results come from: model, basis, report, chart, pictures.

    Each list has its own PURE Concept Prompts, so that a change of one leaves the others' captures in the host's
    cache; that they are fit for each other is checked before.
    """
    graph = GraphBuilder()
    model, clip = links["model"], links["clip"]

    def prompts_of(forget: str, keep: str, output: int) -> Link:
        common = {"kind": erasure.kind, "keep_empty_prompt": True, "templates": ""}
        node: Link = graph.node("PURE_ConceptPrompts", forget=forget, keep=keep, **common).out(output)
        return node

    listed = {"forget": prompts_of(erasure.forget, "", 0)}
    if erasure.keep:
        listed["keep"] = prompts_of("the list to forget is in another node", erasure.keep, 1)
    if erasure.replace_with:
        listed["replacement"] = prompts_of(erasure.replace_with, "", 0)
    captures = {
        side: graph.node("PURE_CaptureActivations", model=model, clip=clip, prompts=prompts, **erasure.capture).out(0)
        for side, prompts in listed.items()
    }
    ordinary = graph.node("PURE_CaptureOrdinary", model=model, clip=clip, **erasure.ordinary)
    basis = graph.node("PURE_BuildBasis", ordinary=ordinary.out(0), **captures, **erasure.build)
    edit = graph.node("PURE_ApplyProjection", model=model, basis=basis.out(0), **erasure.apply)
    shown: dict[str, Any] = {"basis_report": basis.out(2), "edit_report": edit.out(1), "chart": basis.out(1)}
    if erasure.pictures:
        parts = {"original": model, "edited": edit.out(0), "clip": clip, "vae": links["vae"]}
        compared = graph.node("PURE_CompareImages", prompts=erasure.pictures, **parts, **erasure.draw)
        shown["pictures"] = compared.out(0)
    report = graph.node("PURE_ShowErasure", **shown)
    outputs = {
        "model": edit.out(0),
        "basis": basis.out(0),
        "report": report.out(0),
        "chart": basis.out(1),
        "pictures": report.out(1),
    }
    return graph.finalize(), outputs


def check_wired(links: dict[str, Link], *names: str) -> None:
    """Raises PureError where one of these inputs is given a value by other means than a wire, which nothing does."""
    for name in names:
        if name not in links:
            raise PureError(f"Nothing is connected to {name} of PURE Erase Concept. Connect it and run again.")
