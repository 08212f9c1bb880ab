"""PURE_ApplyProjection."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pure_core.projection import DEFAULT_ITERATIONS, MAX_ITERATIONS
from . import sockets
from .host import patches, precision, reporting, sites


class ApplyProjection(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_ApplyProjection",
            display_name="PURE Apply Projection (step 4)",
            category=sockets.CATEGORY,
            **sockets.found_as(*sockets.ERASE, "concept erasure", "UCE", "CURE", "ESD", "safety"),
            description=(
                "Projects the MODEL's cross-attention weights away from the concept. The input MODEL stays as it is."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip=(
                        "The MODEL to edit. LoRAs already on it are projected too; LoRAs loaded after this node are "
                        "not."
                    ),
                ),
                sockets.wire(sockets.Basis, "basis", "From PURE Build Basis or PURE Load Basis."),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip=(
                        "Leave it at 1: half of the edit leaves nearly all of the concept. To erase "
                        "less, raise keep_weight instead. 0 gives back the MODEL that came in."
                    ),
                ),
                io.Combo.Input(
                    "weights",
                    options=list(patches.PROJECTIONS),
                    default="values",
                    tooltip=(
                        "Which weights are edited. values: what the text paints. keys and values: "
                        "also where it paints it; better for an artist's style, and the paper's "
                        "choice. output: what comes out of the attention, before its last layer."
                    ),
                ),
                sockets.advanced(
                    io.Int.Input(
                        "iterations",
                        default=DEFAULT_ITERATIONS,
                        min=1,
                        max=MAX_ITERATIONS,
                        tooltip=(
                            "Applies the edit this many times. 1 is right for the rule contrast. Rule "
                            "energy with a high keep_energy: 4 erases more, and still spares what is "
                            "protected."
                        ),
                    )
                ),
                sockets.advanced(
                    io.Combo.Input(
                        "layers",
                        options=list(patches.PLACES),
                        default="all",
                        tooltip="Which third of the MODEL's attention layers is edited, from the first to the last.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model",
                    tooltip=(
                        "The edited MODEL, for samplers and savers. Put LoRA loaders before this node: a LoRA after "
                        "it can bring the concept back."
                    ),
                ),
                io.String.Output(display_name="report", tooltip="What was edited, and warnings."),
            ],
            is_output_node=True,  # so that the host shows the report again when the result comes from its cache
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        strength: float,
        weights: patches.Weights,
        iterations: int,
        layers: patches.Place,
        basis: Any = None,
    ) -> io.NodeOutput:
        sockets.connected(cls, basis=basis)
        edited, chosen, warnings = patches.apply_basis(model, basis, strength, weights, iterations, layers)
        ranks = [basis.sites[site.name].rank for site in chosen]
        done = (
            f"Erased from {len(chosen)} of {len(basis.sites)} attention layers: {weights}, ranks {min(ranks)} "
            f"to {max(ranks)}, strength {strength:g}, iterations {iterations}."
        )
        shared = sites.shared_blocks(model)
        if shared:
            done += f" {shared} more blocks pass text and picture through the same weights and are left as they are."
        if strength == 0:
            done = "Strength 0: the MODEL is the input MODEL."
        else:
            rounding, loss = precision.describe_residual(precision.residual(edited))
            done, warnings = f"{done} {rounding}".strip(), warnings + loss
        text = "\n".join([*(f"Warning: {w}" for w in warnings), done])
        return io.NodeOutput(edited, text, ui=reporting.report(text, warnings))
