"""The rules by which an edit follows from what was captured. A new rule is a module with these parts, listed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from . import contrast, energy
from .basis import ChartWords, Edit, RuleName, Settings
from .moments import Moments


class Rule(Protocol):
    """What a rule's module has. WEIGHS: keep_weight is its dial. SENDS: it can send a concept somewhere."""

    NAME: str
    VALUES: str
    CHART: ChartWords
    WEIGHS: bool
    SENDS: bool

    def edit(
        self,
        forget: Moments,
        retain: Moments | None,
        mean: torch.Tensor | None,
        settings: Settings,
        goal: torch.Tensor | None = None,
    ) -> Edit: ...

    def spectrum_scale(self, edit: Edit) -> float: ...

    def of_version_1(self, stored: Edit) -> Edit: ...

    def fault(self, stored: Edit) -> str | None: ...

    def warnings(self, live: Mapping[str, Edit], settings: Settings | None) -> list[str]: ...


RULES: dict[RuleName, Rule] = {"contrast": contrast, "energy": energy}
