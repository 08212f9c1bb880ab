"""Lists the nodes for ComfyUI."""
from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .apply import ApplyProjection
from .basis import BuildBasis
from .capture import CaptureActivations, MergeActivations
from .prompts import ConceptPrompts


class PureExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ConceptPrompts, CaptureActivations, MergeActivations, BuildBasis, ApplyProjection]
