"""PURE_MeasureLeakage."""

from __future__ import annotations

import json
from typing import Any

from comfy_api.latest import io

from ..pure_core.charts import leakage_chart
from ..pure_core.leakage import as_numbers, describe_leakage
from . import sockets
from .host import reporting, sampling
from .host.probing import measure_leakage, probe_evaluations


class MeasureLeakage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_MeasureLeakage",
            display_name="PURE Measure Leakage",
            category=sockets.CATEGORY,
            **sockets.found_as("erasure score", "evaluate unlearning"),
            description=(
                "Puts a number on an edit: how much of the concept the edited MODEL still renders, and how far the "
                "rest moved. It does not look at the basis that made the edit."
            ),
            inputs=[
                io.Model.Input("original", tooltip="The MODEL before the edit."),
                io.Model.Input(
                    "edited", tooltip="The same MODEL after PURE Apply Projection, or any other edit of it."
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the checkpoint."),
                sockets.wire(
                    sockets.Prompts,
                    "concept_probes",
                    (
                        "The concept in other words than those it was "
                        "erased with: two prompts or more for each line. "
                        "Half of them find where the concept shows, the "
                        "other half are measured, and the other way round."
                    ),
                ),
                sockets.wire(
                    sockets.Prompts,
                    "keep_probes",
                    (
                        "What should have stayed: neighbours, best ones that "
                        "were not in the keep list, and the empty prompt."
                    ),
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=False,
                    tooltip="Of the noise. Another one than the capture's makes the measure harder to please.",
                ),
                io.Int.Input(
                    "steps",
                    default=10,
                    min=1,
                    max=1000,
                    tooltip=(
                        "Length of the denoising schedule; all of it is run, with the original MODEL, and the edited "
                        "MODEL sees the same noisy latents."
                    ),
                ),
                io.Int.Input(
                    "width",
                    default=512,
                    min=16,
                    max=16384,
                    step=8,
                    tooltip="Of the pictures that the trajectory would draw.",
                ),
                io.Int.Input(
                    "height",
                    default=512,
                    min=16,
                    max=16384,
                    step=8,
                    tooltip="Of the pictures that the trajectory would draw.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="One sentence, then a line per layer."),
                io.String.Output(display_name="json", tooltip="The same numbers for programs."),
                io.Image.Output(display_name="chart", tooltip="Leakage and movement of each layer."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        original: Any,
        edited: Any,
        clip: Any,
        seed: int,
        steps: int,
        width: int,
        height: int,
        concept_probes: Any = None,
        keep_probes: Any = None,
    ) -> io.NodeOutput:
        sockets.connected(cls, concept_probes=concept_probes, keep_probes=keep_probes)
        trajectory = sampling.Trajectory(steps, steps, 1, seed, 1.0, width, height, "euler", "normal", 4)
        cost = f"{probe_evaluations(concept_probes, keep_probes, trajectory)} runs of a MODEL"
        probes = f"{len(concept_probes.pairs)} concept probes and {len(keep_probes.pairs)} keep probes"
        reporting.show(f"Measuring {probes} with both MODELs: {cost}", cls.hidden.unique_id)
        measured = measure_leakage(original, edited, clip, concept_probes, keep_probes, trajectory)
        text, warnings = describe_leakage(measured, keep_probes.concepts)
        text, chart = f"{text}\n{cost}.", leakage_chart(measured)
        shown = reporting.report(text, warnings, chart, cls)
        return io.NodeOutput(text, json.dumps(as_numbers(measured)), chart, ui=shown)
