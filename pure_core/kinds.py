"""What a person wants to erase, in one word, and the settings that measurement found for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .basis import Settings, check_offered
from .errors import PureError

# From little to much: keep_weight is a kind's own in the middle, a hundred times as much at 0, a hundredth at 1.
MIDDLE, DECADES = 0.5, 2.0
Layout = Literal["U-Net", "transformer", "one stream"]  # one stream: text and picture share all attention weights
# Parts of the weight: where descriptions, and in one stream names too, hold out longer; and where something of its own
# is to be drawn instead, which takes more of the way there than nothing in particular.
PARTS: dict[Layout, float] = {"U-Net": 1.0, "transformer": 1 / 3, "one stream": 1 / 50}
REPLACING = 2 / 15
DEFAULTS = Settings()


@dataclass(frozen=True)
class Kind:
    """language: captions of ordinary pictures. with_keys: the keep_weight where keys are edited beside values, in a
    MODEL that allows it; None: values alone, everywhere."""

    language: str = "pictures"
    keep_weight: float = DEFAULTS.keep_weight
    with_keys: float | None = None


KINDS = {
    "object or character": Kind(),
    "artistic style": Kind(with_keys=8.0),
    "person": Kind(),
    "unsafe content": Kind(),
    "booru tags": Kind("booru tags"),
    "free text": Kind(),
}


def weight_of(amount: float, middle: float) -> float:
    """keep_weight for an amount between 0 (little) and 1 (much): the kind's own in the middle."""
    if not 0.0 <= amount <= 1.0:
        raise PureError(f"amount must be between 0 (little) and 1 (much); it is {amount}.")
    return float(middle * 10 ** (2 * DECADES * (MIDDLE - amount)))


def settings_of(
    kind: str, amount: float, layout: Layout = "U-Net", keys: bool = True, replacing: bool = False
) -> tuple[Settings, str]:
    """The settings of a basis, and which projections are edited, for a kind and an amount.

    layout: the MODEL's. keys: whether its keys can be edited. replacing: where something else is to be drawn instead.
    """
    check_offered("kind", kind, tuple(KINDS))
    own = KINDS[kind]
    middle, weights = own.keep_weight, "values"
    if keys and own.with_keys is not None:
        middle, weights = own.with_keys, "keys and values"
    part = PARTS[layout] * (REPLACING if replacing else 1.0)
    return Settings(keep_weight=weight_of(amount, part * middle)), weights
