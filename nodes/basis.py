"""PURE_BuildBasis, PURE_SaveBasis and PURE_LoadBasis."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pure_core.basis import CENTERINGS, RULE_NAMES, STRUCTURES, TENSORS, Centering, RuleName, Settings, Structure
from ..pure_core.basis_file import load_basis, save_basis
from ..pure_core.build import build_basis, describe_basis, find_faults
from ..pure_core.charts import basis_chart
from ..pure_core.neighbours import closest_kept
from . import sockets
from .host import paths, reporting

DEFAULTS = Settings()


class BuildBasis(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_BuildBasis",
            display_name="PURE Build Basis (step 3)",
            category=sockets.CATEGORY,
            **sockets.found_as(*sockets.ERASE, "UCE", "CURE", "projection"),
            description=(
                "Finds the directions of the forget capture that are to go, spared where the keep capture needs them."
            ),
            inputs=[
                sockets.wire(
                    sockets.Activations, "forget", "Capture of what to erase; all its concepts form one joint basis."
                ),
                sockets.wire(
                    sockets.Activations,
                    "keep",
                    (
                        "Capture of what to keep. Without one, everything that the forget prompts share with the "
                        "rest goes too."
                    ),
                    optional=True,
                ),
                sockets.wire(
                    sockets.Activations,
                    "ordinary",
                    (
                        "From PURE Capture Ordinary Pictures: spares what is in neither list, and tells what is drawn "
                        "instead of the concept (nothing in particular). Without it, set keep_weight to 3."
                    ),
                    optional=True,
                ),
                sockets.wire(
                    sockets.Activations,
                    "replacement",
                    "Capture of what to draw instead of the concept. Without one: nothing in particular.",
                    optional=True,
                ),
                io.Combo.Input(
                    "rule",
                    options=list(RULE_NAMES),
                    default=DEFAULTS.rule,
                    tooltip=(
                        "contrast erases what is strong in what you forget and weak in what you "
                        "keep. energy is the paper's rule, with two thresholds (advanced inputs): "
                        "use it with centering none, structure whole layer, and keys and values in "
                        "PURE Apply Projection."
                    ),
                ),
                sockets.advanced(
                    io.Float.Input(
                        "forget_energy",
                        default=DEFAULTS.forget_energy,
                        min=0.0,
                        max=1.0,
                        step=0.0001,
                        tooltip=(
                            "Rule energy: how much of what the forget prompts render counts as the "
                            "concept. Stay very near 1. Higher erases more."
                        ),
                    )
                ),
                sockets.advanced(
                    io.Float.Input(
                        "keep_energy",
                        default=DEFAULTS.keep_energy,
                        min=0.0,
                        max=1.0,
                        step=0.0001,
                        tooltip=(
                            "Rule energy: how much of what the kept prompts render is protected. Lower "
                            "erases more; near 1 nothing is erased."
                        ),
                    )
                ),
                io.Float.Input(
                    "keep_weight",
                    default=DEFAULTS.keep_weight,
                    min=0.0,
                    max=1000000.0,
                    step=0.05,
                    tooltip=(
                        "Rule contrast: how much keeping counts against erasing. What is this many "
                        "times stronger in forget than in what is kept goes by half, what is "
                        "stronger still by more. Lower erases more, higher spares more."
                    ),
                ),
                sockets.advanced(
                    io.Combo.Input(
                        "centering",
                        options=list(CENTERINGS),
                        default=DEFAULTS.centering,
                        tooltip=(
                            "mean of keep: erases what the concept adds to the usual picture, not what all pictures "
                            "share. none: all that it renders, for the rule energy."
                        ),
                    )
                ),
                sockets.advanced(
                    io.Combo.Input(
                        "structure",
                        options=list(STRUCTURES),
                        default=DEFAULTS.structure,
                        tooltip=(
                            "per head: one edit for each attention head, so that what is rendered changes by exactly "
                            "that edit. whole layer: the paper's, one for all heads of a layer together."
                        ),
                    )
                ),
                sockets.advanced(
                    io.Int.Input(
                        "max_rank",
                        default=DEFAULTS.max_rank,
                        min=0,
                        max=4096,
                        tooltip="At most this many forget directions per layer (or per head). 0: no cap.",
                    )
                ),
                sockets.advanced(
                    io.Float.Input(
                        "ordinary_share",
                        default=DEFAULTS.ordinary_share,
                        min=0.0,
                        max=1.0,
                        step=0.05,
                        tooltip=(
                            "How much ordinary pictures count in what is kept, beside your keep list. Higher spares "
                            "more of everything else and less of the list."
                        ),
                    )
                ),
            ],
            outputs=[
                sockets.Basis.Output(display_name="basis", tooltip="For PURE Apply Projection."),
                io.Image.Output(
                    display_name="chart",
                    tooltip="Spectra, ranks, and how far forget and keep are apart in each layer.",
                ),
                io.String.Output(
                    display_name="report", tooltip="Warnings, settings, and rank and strength of each layer."
                ),
            ],
            is_output_node=True,  # so that the host shows the report again when the result comes from its cache
        )

    @classmethod
    def execute(
        cls,
        rule: RuleName,
        forget_energy: float,
        keep_energy: float,
        keep_weight: float,
        centering: Centering,
        structure: Structure,
        max_rank: int,
        ordinary_share: float,
        forget: Any = None,
        keep: Any = None,
        ordinary: Any = None,
        replacement: Any = None,
    ) -> io.NodeOutput:
        sockets.connected(cls, forget=forget)
        settings = Settings(
            rule, forget_energy, keep_energy, keep_weight, centering, structure, max_rank, ordinary_share
        )
        progress = reporting.Progress(None, len(forget.moments))
        basis, warnings = build_basis(forget, keep, settings, ordinary, replacement, progress.step)
        closest = closest_kept(forget, keep) if keep else []
        chart, text = basis_chart(basis), describe_basis(basis, warnings, closest)
        return io.NodeOutput(basis, chart, text, ui=reporting.report(text, warnings, chart, cls))


class SaveBasis(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_SaveBasis",
            display_name="PURE Save Basis",
            category=sockets.CATEGORY,
            **sockets.found_as("save erasure"),
            description=(
                "Saves a basis, so that the erasure can be applied again without a capture: to the same MODEL, or to "
                "a fine-tune of it."
            ),
            inputs=[
                sockets.wire(sockets.Basis, "basis", "From PURE Build Basis or PURE Load Basis."),
                io.String.Input(
                    "filename_prefix",
                    default="pure/basis_%concept%",
                    tooltip=f"{sockets.PREFIX} output/pure is listed by PURE Load Basis.",
                ),
                io.Boolean.Input("embed_recipe", default=True, tooltip=sockets.RECIPE),
            ],
            outputs=[io.String.Output(display_name="path", tooltip="Where the file is.")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, filename_prefix: str, embed_recipe: bool, basis: Any = None) -> io.NodeOutput:
        sockets.connected(cls, basis=basis)
        concepts = basis.recipe.forget.concepts if basis.recipe else ()
        target = paths.new_path(paths.named(filename_prefix, concepts, embed_recipe))
        paths.check_room(target, sum(getattr(edit, t).nbytes for edit in basis.sites.values() for t in TENSORS))
        target = save_basis(basis, target, paths.embeds(embed_recipe))
        text = f"Saved {target.name}, {target.stat().st_size / 2**20:.1f} MB."
        return io.NodeOutput(str(target), ui=reporting.report(text))


class LoadBasis(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PURE_LoadBasis",
            display_name="PURE Load Basis",
            category=sockets.CATEGORY,
            **sockets.found_as("load erasure"),
            description="Loads a saved basis and checks all of it.",
            inputs=[
                io.Combo.Input("name", options=paths.saved_files(), tooltip="A file of models/pure or output/pure.")
            ],
            outputs=[
                sockets.Basis.Output(display_name="basis", tooltip="For PURE Apply Projection."),
                io.String.Output(display_name="report", tooltip="What it erases, and rank and strength of each layer."),
            ],
            is_output_node=True,  # so that the host shows the report again when the result comes from its cache
        )

    @classmethod
    def fingerprint_inputs(cls, name: str) -> Any:
        return paths.state_of(name)

    @classmethod
    def execute(cls, name: str) -> io.NodeOutput:
        basis = load_basis(paths.saved_path(name), reporting.check_cancelled)
        warnings = find_faults(basis)
        text = describe_basis(basis, warnings)
        return io.NodeOutput(basis, text, ui=reporting.report(text, warnings))
