"""Lists the nodes for ComfyUI."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .activations import LoadActivations, MergeActivations, SaveActivations
from .apply import ApplyProjection
from .basis import BuildBasis, LoadBasis, SaveBasis
from .capture import CaptureActivations
from .compare import CompareImages
from .erase import EraseConcept, ShowErasure
from .export import SaveCheckpoint, SaveLoRA
from .host.paths import register_folder, warn_of_folder_name
from .judge import JudgeImages
from .measure import MeasureLeakage
from .ordinary import CaptureOrdinary
from .prompts import ConceptPrompts


class PureExtension(ComfyExtension):
    def __init__(self) -> None:
        warn_of_folder_name()
        register_folder()  # the one registration there is; before the lists of files are asked for

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            EraseConcept,
            ShowErasure,
            ConceptPrompts,
            CaptureActivations,
            CaptureOrdinary,
            MergeActivations,
            SaveActivations,
            LoadActivations,
            BuildBasis,
            SaveBasis,
            LoadBasis,
            ApplyProjection,
            MeasureLeakage,
            CompareImages,
            JudgeImages,
            SaveLoRA,
            SaveCheckpoint,
        ]
