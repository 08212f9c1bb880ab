"""What a person wants to erase, in one word, and the settings that measurement found for it."""

from __future__ import annotations

from dataclasses import dataclass

from .basis import Settings, check_offered
from .errors import PureError

# From little to much: retain_weight is a kind's own in the middle, a hundred times as much at 0, a hundredth at 1.
MIDDLE, DECADES = 0.5, 2.0
DEFAULTS = Settings()


@dataclass(frozen=True)
class Kind:
    """preset: templates of PURE Concept Prompts. language: captions of ordinary pictures."""

    preset: str
    language: str = "pictures"
    retain_weight: float = DEFAULTS.retain_weight
    where: str = "values"


KINDS = {
    "object or character": Kind("object or character"),
    "artistic style": Kind("artistic style"),
    "person": Kind("person"),
    "unsafe content": Kind("unsafe content"),
    "booru tags": Kind("booru tags", "booru tags"),
    "free text": Kind("free text"),
}


def weight_of(amount: float, middle: float) -> float:
    """retain_weight for an amount between 0 (little) and 1 (much): the kind's own in the middle."""
    if not 0.0 <= amount <= 1.0:
        raise PureError(f"amount must be between 0 (little) and 1 (much); it is {amount}.")
    return float(middle * 10 ** (2 * DECADES * (MIDDLE - amount)))


def settings_of(kind: str, amount: float) -> tuple[Settings, str]:
    """The settings of a basis, and which projections are edited, for a kind and an amount."""
    check_offered("kind", kind, tuple(KINDS))
    own = KINDS[kind]
    return Settings(retain_weight=weight_of(amount, own.retain_weight)), own.where
