"""What a basis is made of: its settings, the edit of each attention site, and the recipe that it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch

from .activations import Anchors, CaptureSettings, ModelIdentity, SiteShape
from .errors import PureError

Tensor = torch.Tensor
RuleName = Literal["contrast", "energy"]
Centering = Literal["none", "mean of keep"]
Structure = Literal["whole layer", "per head"]
RULE_NAMES: tuple[RuleName, ...] = get_args(RuleName)
CENTERINGS: tuple[Centering, ...] = get_args(Centering)
NOTHING = Anchors()
STRUCTURES: tuple[Structure, ...] = get_args(Structure)


@dataclass(frozen=True)
class Settings:
    """How a basis is built; see PURE_BuildBasis for what each means. Raises PureError on other values."""

    rule: RuleName = "contrast"
    forget_energy: float = 0.9999
    keep_energy: float = 0.5
    keep_weight: float = 1.5
    centering: Centering = "mean of keep"
    structure: Structure = "per head"
    max_rank: int = 0
    ordinary_share: float = 0.5

    def __post_init__(self) -> None:
        for name, offered in (("rule", RULE_NAMES), ("centering", CENTERINGS), ("structure", STRUCTURES)):
            check_offered(name, getattr(self, name), offered)
        for name in ("forget_energy", "keep_energy", "ordinary_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise PureError(f"{name} must be between 0 and 1, not {getattr(self, name)}.")
        if not 0.0 <= self.keep_weight < float("inf"):
            raise PureError(f"keep_weight must be 0 (nothing is spared) or more, not {self.keep_weight}.")
        if self.max_rank < 0:
            raise PureError(f"max_rank must be 0 (no cap) or more, not {self.max_rank}.")


def check_offered(name: str, value: str, offered: tuple[str, ...] | list[str]) -> None:
    """Raises PureError for a choice that is not offered: hosts before 0.7 let any text through."""
    if value not in offered:
        raise PureError(f"{name} must be one of {', '.join(offered)}; it is {value!r}.")


@dataclass(frozen=True)
class Edit:
    """E = I - U M^T of one block of channels (a whole layer or one head), and what it came from, for reports.

    u, m: (d, r). v_f, v_r: orthonormal (d, r_F), (d, r_R) of the energy rule, empty (d, 0) for the contrast rule.
    spectrum_forget, spectrum_retain: singular values (energy rule), or ratios and nothing (contrast rule); of wide
    layers only as far as a little behind the cut. values: (r,), per direction of the edit sin^2 of its angle to the
    retain space (energy rule) or its ratio (contrast rule). refill: (d, r) what is put along M where something else is
    to be drawn, so that E = I - (U - refill) M^T; (d, 0) where nothing is.
    """

    u: Tensor
    m: Tensor
    v_f: Tensor
    v_r: Tensor
    spectrum_forget: Tensor
    spectrum_retain: Tensor
    values: Tensor
    refill: Tensor

    @property
    def left(self) -> Tensor:
        """(d, r) U of the whole edit."""
        return self.u - self.refill if self.refill.shape[1] else self.u

    @property
    def rank(self) -> int:
        return self.u.shape[1]

    @property
    def strongest(self) -> float:
        """The largest share that goes along one of its directions: of the diagonal of M^T U; 0 where it has none."""
        return float((self.m * self.u).sum(0).max()) if self.rank else 0.0


TENSORS = tuple(f.name for f in fields(Edit))  # the parts of an edit, as files name them
MATRICES = ("u", "m", "v_f", "v_r", "refill")


@dataclass(frozen=True)
class ChartWords:
    """What a rule's chart says: its title, titles of its parts, the form of a bar's number, and their scales.

    title: takes the concept. times: what stands behind a number of the spectra's axis. parts: below that axis. bar: the
    last part's number of a layer; None where the spectra have the chart for themselves. lowest: power of ten at which
    the spectra's axis begins. top: value of the longest bar; None: that of the largest.
    """

    title: str
    spectrum: str
    times: str = ""
    parts: str = ""
    ranks: str = ""
    bars: str = ""
    bar: Callable[[Edit], float] | None = None
    form: str = ""
    lowest: int = -2
    top: float | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything needed to repeat the capture and the build: it names what was erased.

    ordinary, ordinary_capture: captions of ordinary pictures, and how they were sampled; empty where there were none.
    replacement: what is drawn instead; empty where nothing is.
    """

    settings: Settings
    capture: CaptureSettings
    forget: Anchors
    retain: Anchors
    ordinary: Anchors = NOTHING
    ordinary_capture: tuple[CaptureSettings, ...] = ()
    replacement: Anchors = NOTHING


@dataclass(frozen=True)
class ConceptBasis:
    """A concept's edit for every attention site of a MODEL, float32; spectra over their largest value.

    recipe: None where a file does not say it.
    """

    sites: Mapping[str, Edit]
    shapes: Mapping[str, SiteShape]
    rule: RuleName
    structure: Structure
    model: ModelIdentity
    recipe: Recipe | None = None

    @property
    def concepts(self) -> str:
        """What it erases, in words."""
        return ", ".join(self.recipe.forget.concepts) if self.recipe else "a concept that the file does not name"
