"""PURE_EraseConcept, the pack in one node, and PURE_ShowErasure, which shows what it did."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from comfy_api.latest import io

from ..pure_core.kinds import KINDS, settings_of
from ..pure_core.ordinary import STEPS
from ..pure_core.prompts import anchor_prompts, make_prompts, read_lines, refuse_same
from . import sockets
from .host import expansion, reporting, sampling, sites

NEXT = (
    "Compare both rows. Still there? Raise amount, or describe it in more words. "
    "Others changed? Add them to keep, or lower amount."
)
SIZE = "0: the size the MODEL was trained for. Smaller is faster."


def shown_prompts(forget: str, keep: str, kind: str) -> list[str]:
    """What to draw before and after: the first two lines to forget, a name and a description, and the first to keep."""
    erased = [anchor_prompts(line, "forget", kind).texts[0] for line in read_lines(forget).lines[:2]]
    return erased + [anchor_prompts(line, "retain", kind).texts[0] for line in read_lines(keep).lines[:1]]


class EraseConcept(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_EraseConcept",
            display_name="PURE Erase Concept",
            category=sockets.CATEGORY,
            **sockets.found_as(*sockets.ERASE, "concept erasure", "UCE", "ESD", "safety"),
            description=(
                "Erases a concept from a MODEL: connect MODEL and CLIP, write what to forget and what to keep, run. "
                "The MODEL that goes in stays as it is; connect your sampler to the MODEL that comes out."
            ),
            inputs=[
                io.Model.Input("model", tooltip="The MODEL to erase from, with its LoRAs already on it."),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                io.String.Input(
                    "forget",
                    multiline=True,
                    default="",
                    placeholder="what to erase, one per line:\nits name, then what it looks like",
                    tooltip=(
                        "What to erase, one per line: its name, and below it two to four lines that say what it looks "
                        "like without the name. Those catch prompts that never name it."
                    ),
                ),
                io.String.Input(
                    "keep",
                    multiline=True,
                    default="",
                    placeholder="what must stay, one per line:\nwhat is most like it",
                    tooltip=(
                        "What must stay, one per line: six or more things that are most like it. Not the thing "
                        "itself. Ordinary pictures of all kinds are kept anyway."
                    ),
                ),
                io.String.Input(
                    "replace_with",
                    default="",
                    tooltip=(
                        "What to draw instead, such as: a dog. Empty: nothing in particular; the rest of the prompt is "
                        "drawn as usual."
                    ),
                ),
                io.Combo.Input(
                    "kind",
                    options=list(KINDS),
                    default="object or character",
                    tooltip=(
                        "What you are erasing. It sets the wording around your lines and the strength of the edit. "
                        "Person and unsafe content were never tried."
                    ),
                ),
                io.Float.Input(
                    "amount",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "How much goes. Low spares what is like it, high erases more thoroughly. Changing it is quick: "
                        "only the pictures on the node are drawn again."
                    ),
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip=(
                        "Optional: connect it to see your first two lines to forget and your first line to keep drawn "
                        "before and after, on the node."
                    ),
                ),
                sockets.advanced(
                    io.Int.Input(
                        "size", default=0, min=0, max=4096, step=8, tooltip=f"Side of the pictures in pixels. {SIZE}"
                    )
                ),
                sockets.advanced(
                    io.Int.Input(
                        "steps",
                        default=10,
                        min=1,
                        max=100,
                        tooltip="Sampling steps while it looks at your concept. Fewer is faster and less exact.",
                    )
                ),
                sockets.advanced(
                    io.Int.Input(
                        "seed",
                        default=0,
                        min=0,
                        max=0xFFFFFFFFFFFFFFFF,
                        control_after_generate=False,
                        tooltip="Where the noise starts, while it looks at your concept and in the pictures.",
                    )
                ),
                sockets.advanced(
                    io.Int.Input(
                        "batch_size",
                        default=4,
                        min=1,
                        max=64,
                        tooltip="How many prompts run at once. 1 needs least memory.",
                    )
                ),
                sockets.advanced(
                    io.Float.Input("cfg", default=5.0, min=0.0, max=30.0, step=0.5, tooltip="cfg of the pictures.")
                ),
                sockets.advanced(
                    io.String.Input(
                        "ordinary",
                        multiline=True,
                        default="",
                        placeholder="ordinary pictures, one caption per line; empty: the pack's own",
                        tooltip=(
                            "Captions of ordinary pictures, which stay as they are, like your keep list. It looks at "
                            "them once per MODEL and keeps the result as a file. Empty: the pack's own, of all kinds."
                        ),
                    )
                ),
                sockets.experimental(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The edited MODEL, for samplers and savers."),
                sockets.Basis.Output(display_name="basis", tooltip="The erasure itself, for PURE Save Basis."),
                io.String.Output(display_name="report", tooltip="What was found and what was done, then the details."),
                io.Image.Output(display_name="chart", tooltip="How clearly the concept stands out, layer by layer."),
                io.Image.Output(
                    display_name="pictures", tooltip="Before above after; the chart where there is no VAE."
                ),
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            enable_expand=True,
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        forget: str,
        keep: str,
        replace_with: str,
        kind: str,
        amount: float,
        size: int,
        steps: int,
        seed: int,
        batch_size: int,
        cfg: float,
        ordinary: str,
        experimental: bool,
        vae: Any = None,
    ) -> io.NodeOutput:
        found = sites.attention_sites(model)
        sites.check_experimental(model, found, experimental)
        replacing = bool(replace_with.strip())
        settings, weights = settings_of(kind, amount, sites.layout_of(found), "keys" in found[0].weights, replacing)
        prompts, *_ = make_prompts(forget, keep, kind)  # says what is wrong with the lists before anything is sampled
        refuse_same(prompts.texts, anchor_prompts(replace_with, "forget", kind).texts)
        sampling.encode_empty(model, clip, found)
        side = size or expansion.native_size(model, found)
        links = expansion.links_of(cls.hidden)
        expansion.check_wired(links, "model", "clip")
        scheduler, pictures = sampling.usual_scheduler(found), shown_prompts(forget, keep, kind)
        common = {"seed": seed, "sampler_name": "euler", "scheduler": scheduler, "width": side, "height": side}
        erasure = expansion.Erasure(
            forget,
            keep if keep.strip() else "",
            replace_with.strip(),
            kind,
            ordinary={
                "language": KINDS[kind].language,
                "captions": ordinary,
                "steps": STEPS,
                "size": side,
                "keep_file": True,
                "batch_size": batch_size,
            },
            capture={
                **common,
                "steps": steps,
                "recorded_steps": steps,
                "seeds": 1,
                "cfg": 1.0,
                "batch_size": batch_size,
                "experimental": experimental,
            },
            build=asdict(settings),
            apply={"strength": 1.0, "weights": weights, "iterations": 1, "layers": "all"},
            pictures="\n".join(pictures) if "vae" in links else "",
            draw={
                **common,
                "negative": "",
                "steps": 20,
                "cfg": cfg,
                "columns": 3,
                "seeds": 1 if len(pictures) > 1 else 2,
            },
        )
        graph, outputs = expansion.expand(erasure, links)
        return io.NodeOutput(*outputs.values(), expand=graph)


class ShowErasure(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_ShowErasure",
            display_name="PURE Show Erasure",
            category=sockets.CATEGORY,
            **sockets.found_as("erasure report"),
            description="Puts the reports of PURE Build Basis and PURE Apply Projection and a picture on one node.",
            inputs=[
                io.String.Input("basis_report", force_input=True, tooltip="From PURE Build Basis."),
                io.String.Input("edit_report", force_input=True, tooltip="From PURE Apply Projection."),
                io.Image.Input("chart", tooltip="From PURE Build Basis; shown where there are no pictures."),
                io.Image.Input("pictures", optional=True, tooltip="From PURE Compare Images."),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="Warnings first, then what was found and done."),
                io.Image.Output(display_name="picture", tooltip="The pictures, or the chart."),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, basis_report: str, edit_report: str, chart: Any, pictures: Any = None) -> io.NodeOutput:
        lines = [*basis_report.splitlines(), *edit_report.splitlines()]
        warnings = [line for line in lines if line.startswith(reporting.WARNING)]
        told = [line for line in lines if line not in warnings]
        text = "\n".join([*warnings, told[0], NEXT, *told[1:]])
        picture = chart if pictures is None else pictures
        return io.NodeOutput(text, picture, ui={**reporting.report(text, (), picture, cls), reporting.LAST: (True,)})
