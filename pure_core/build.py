"""From captured activations to the basis of an edit: any rule, whole layers or single heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch

from .activations import Activations, Anchors, check_same_model, setting_differences
from .basis import MATRICES, TENSORS, ConceptBasis, Edit, Recipe, Settings
from .errors import PureError
from .moments import Moments, mixed
from .neighbours import Neighbour, closest_kept, describe_closest
from .ordinary import NEUTRAL_TEXTS, PLAIN
from .projection import block_diagonal
from .prompts import EMPTY, in_both, refuse_same, refuse_shared
from .rules import RULES

ALONE = 3.0  # keep_weight that measurement found where only neighbours are kept, and no ordinary pictures
CLEAR = 0.5  # share of a layer's best direction that goes, from which the concept stands out there


def build_basis(
    forget: Activations,
    retain: Activations | None,
    settings: Settings,
    ordinary: Activations | None = None,
    replacement: Activations | None = None,
    step: Callable[[], None] = lambda: None,
) -> tuple[ConceptBasis, list[str]]:
    """The joint basis of all forget concepts, and warnings; `step` is called after each site.

    ordinary: a capture of ordinary pictures, which make up ordinary_share of what is kept (all of it without `retain`);
    the concept's prompts are sent to what its neutral prompts render. replacement: a capture of what is drawn instead,
    of either role. Raises PureError where it could not do what it says.
    """
    check_pair(forget, retain)
    check_ordinary(forget, ordinary)
    check_replacement(forget, replacement)
    sites = {}
    for name, moments in forget.moments.items():
        kept = kept_moments(name, retain, ordinary, settings.ordinary_share)
        goal = goal_row(name, replacement, ordinary, settings)
        sites[name] = build_site(moments, kept, forget.shapes[name].heads, settings, goal)
        step()
    recipe = Recipe(
        settings,
        forget.settings,
        forget.anchors,
        retain.anchors if retain else Anchors(),
        ordinary.anchors if ordinary else Anchors(),
        (ordinary.settings,) if ordinary else (),
        replacement.anchors if replacement else Anchors(),
    )
    basis = ConceptBasis(sites, forget.shapes, settings.rule, settings.structure, forget.model, recipe)
    return basis, [*pair_warnings(forget, retain, settings, ordinary, replacement), *find_faults(basis)]


def kept_moments(name: str, retain: Activations | None, ordinary: Activations | None, share: float) -> Moments | None:
    """What is kept at a site: the neighbours' moments and, by this share, those of ordinary pictures."""
    if retain is None or ordinary is None:
        kept = retain or ordinary
        return kept.moments[name] if kept else None
    return mixed(retain.moments[name], ordinary.moments[name], share)


def check_pair(forget: Activations, retain: Activations | None) -> None:
    """Refuses captures that do not belong together, or a concept that is to be both forgotten and kept."""
    if forget.role != "forget":
        raise PureError("The capture at forget is of prompts to keep: swap the two captures.")
    if retain is None:
        return
    if retain.role != "retain":
        raise PureError("The capture at keep is of prompts to forget. Connect the capture of what to keep there.")
    check_same_model(forget, retain, "the forget capture", "the keep capture")
    refuse_shared(forget.anchors.concepts, retain.anchors.concepts)
    refuse_shared(forget.anchors.prompts, retain.anchors.prompts)


def check_ordinary(forget: Activations, ordinary: Activations | None) -> None:
    """Refuses a capture of ordinary pictures that is none, or of another MODEL."""
    if ordinary is None:
        return
    if ordinary.role != "retain":
        raise PureError(
            "The capture at ordinary is of prompts to forget: connect PURE Capture Ordinary Pictures there."
        )
    check_same_model(forget, ordinary, "the forget capture", "the capture of ordinary pictures")


def check_replacement(forget: Activations, replacement: Activations | None) -> None:
    """Refuses a capture of what is drawn instead that is of another MODEL, of nothing, or of what is to go."""
    if replacement is None:
        return
    check_same_model(forget, replacement, "the forget capture", "the capture of the replacement")
    if all(concept == EMPTY for concept in replacement.anchors.concepts):
        raise PureError("The capture at replacement is of the empty prompt alone. Write what to draw instead.")
    refuse_same(forget.anchors.prompts, replacement.anchors.prompts)


def goal_row(
    name: str, replacement: Activations | None, ordinary: Activations | None, settings: Settings
) -> torch.Tensor | None:
    """(d,) where a site's forget rows are sent; None: nowhere, so that they lose what sets them apart.

    The mean row of what is drawn instead (not of the empty prompt), or else of the prompts that ask for nothing in
    particular, where there are any. Only the contrast rule can send rows anywhere.
    """
    if replacement:
        source, wanted = replacement, [c for c in replacement.anchors.concepts if c != EMPTY]
    elif ordinary and sends_to_neutral(ordinary, settings):
        source, wanted = ordinary, [PLAIN]
    else:
        return None
    of = [source.anchors.concepts.index(concept) for concept in wanted]
    return source.sums[name][of].sum(0) / sum(source.rows[i] for i in of)


def sends_to_neutral(ordinary: Activations, settings: Settings) -> bool:
    """Whether the rule sends a concept to what the neutral prompts of this capture render."""
    return RULES[settings.rule].SENDS and PLAIN in ordinary.anchors.concepts


def pair_warnings(
    forget: Activations,
    retain: Activations | None,
    settings: Settings,
    ordinary: Activations | None = None,
    replacement: Activations | None = None,
) -> list[str]:
    """Warnings on what is to be kept."""
    found, rule = [], RULES[settings.rule]
    if rule.WEIGHS and settings.keep_weight == 0 and (retain or ordinary):
        found.append("keep_weight is 0, so nothing is spared. Use 1 or more.")
    if ordinary is None and rule.WEIGHS and settings.keep_weight < ALONE:
        found.append(
            "Nothing is connected to ordinary, so what you did not list is hardly spared. Connect PURE Capture "
            f"Ordinary Pictures, or set keep_weight to {ALONE:g}."
        )
    if ordinary and rule.SENDS and not replacement and not sends_to_neutral(ordinary, settings):
        found.append(
            "The capture at ordinary does not say what a picture of nothing in particular looks like, so more of the "
            "concept stays. Make it with PURE Capture Ordinary Pictures."
        )
    if ordinary and not replacement and sends_to_neutral(ordinary, settings):
        neutral = NEUTRAL_TEXTS.intersection(ordinary.anchors.prompts)
        found += [
            f"{text!r} is one of the pictures of nothing in particular that a concept is sent to, so it stays. "
            "Say in other words what to erase."
            for text in in_both(forget.anchors.prompts, neutral)[:1]
        ]
    if retain is None and ordinary is None:
        found.append(
            "Nothing is listed to keep, so everything that your concept shares with other pictures goes too. "
            "Connect a capture of what to keep."
        )
    elif retain is not None and not [concept for concept in retain.anchors.concepts if concept != EMPTY]:
        found.append(
            "Only the empty prompt is listed to keep, so most of what your concept shares with other pictures goes "
            "too. List at least six neighbours of it."
        )
    if retain is None:
        return found
    differ = setting_differences(forget.settings, retain.settings)
    if differ:
        found.append(
            f"The two captures differ in {', '.join(differ)}, so what they have in common cannot be told from what "
            "sets them apart. Capture both in the same way."
        )
    kept = sum(concept != EMPTY for concept in retain.anchors.concepts)
    return [*found, *describe_closest(closest_kept(forget, retain), kept)]


def build_site(
    forget: Moments, retain: Moments | None, heads: int, settings: Settings, goal: torch.Tensor | None = None
) -> Edit:
    """The edit of one site, float32; a site or head whose forget rows have no energy gets rank 0. goal: (d,)."""
    parts = heads if settings.structure == "per head" else 1
    size = forget.width // parts
    spans = [(i * size, (i + 1) * size) for i in range(parts)]
    blocks = [
        build_block(
            forget.columns(*s),
            retain.columns(*s) if retain else None,
            settings,
            None if goal is None else goal[slice(*s)],
        )
        for s in spans
    ]
    joined = {name: block_diagonal([getattr(b, name) for b in blocks]) for name in MATRICES}
    joined["values"] = torch.cat([b.values for b in blocks])
    for name in ("spectrum_forget", "spectrum_retain"):  # per head: of all heads together
        s = torch.cat([getattr(b, name) for b in blocks]).sort(descending=True).values
        joined[name] = s / s[0] if s.numel() else s
    edit = Edit(**{name: joined[name].to(torch.float32).contiguous() for name in TENSORS})
    if not all(torch.isfinite(getattr(edit, f.name)).all() for f in fields(Edit)):
        raise PureError("These activations give an edit that is not a number: capture again with the MODEL in fp32.")
    return edit


def build_block(forget: Moments, retain: Moments | None, settings: Settings, goal: torch.Tensor | None = None) -> Edit:
    """The edit of one block of channels by the chosen rule, in float64."""
    centred = settings.centering == "mean of keep" and retain is not None and forget.energy > 0
    mean = retain.mean if centred and retain is not None else None
    return RULES[settings.rule].edit(forget if mean is None else forget.minus(mean), retain, mean, settings, goal)


def find_faults(basis: ConceptBasis) -> list[str]:
    """Warnings on a basis; raises PureError on one that would change nothing."""
    live = {name: edit for name, edit in basis.sites.items() if edit.rank}
    if not live:
        raise PureError(
            "The prompts to forget left no trace in any layer, so there is nothing to erase: check prompts and MODEL."
        )
    dead = [name for name in basis.sites if name not in live]
    found = []
    if dead:
        named = ", ".join(dead[:3]) + (", ..." if len(dead) > 3 else "")
        found.append(f"{len(dead)} of {len(basis.sites)} layers carry no energy and stay unedited: {named}.")
    return [*found, *RULES[basis.rule].warnings(live, basis.recipe.settings if basis.recipe else None)]


def found_sentence(basis: ConceptBasis, closest: list[Neighbour]) -> str:
    """What was found, for a person: the verdict first, short enough for a node."""
    clear = sum(edit.strongest >= CLEAR for edit in basis.sites.values())
    name = shortened(basis.recipe.forget.concepts, most=1) if basis.recipe else "the concept"
    where = f"Found clearly in {clear} of {len(basis.sites)} layers" if clear else "Not found clearly in any layer"
    near = f" Closest of what is kept: {closest[0].kept}." if closest else ""
    return f"{where}: {name}.{near}"


def captions_of(ordinary: Anchors) -> list[str]:
    """The captions among the prompts of a capture of ordinary pictures: neither the empty prompt nor neutral ones."""
    neutral = NEUTRAL_TEXTS if PLAIN in ordinary.concepts else ()
    return [text for text in ordinary.prompts if text and text not in neutral]


def shortened(concepts: Sequence[str], most: int = 2) -> str:
    """The first few concepts, and how many more there are."""
    return ", ".join(concepts[:most]) + (f" and {len(concepts) - most} more" if len(concepts) > most else "")


def describe_basis(basis: ConceptBasis, warnings: list[str], closest: list[Neighbour] | None = None) -> str:
    """The report: warnings first, then what is erased and what is most like it, then a line per layer."""
    rule, recipe = RULES[basis.rule], basis.recipe
    kept = ", ".join(recipe.retain.concepts) if recipe else ""
    captions = len(captions_of(recipe.ordinary)) if recipe else 0
    ordinary = f", and {captions} ordinary pictures" if captions else ""
    drawn = shortened([c for c in recipe.replacement.concepts if c != EMPTY]) if recipe else ""
    if recipe and not drawn and rule.SENDS and PLAIN in recipe.ordinary.concepts:
        drawn = "nothing in particular"
    instead = f" Draws {drawn} instead." if drawn else ""
    lines = [
        *(f"Warning: {w}" for w in warnings),
        found_sentence(basis, closest or []),
        f"Erases {basis.concepts}; keeps {kept or 'nothing in particular'}{ordinary}.{instead}",
    ]
    if rule.WEIGHS:
        best = max((float(edit.values.max()) for edit in basis.sites.values() if edit.rank), default=0.0)
        lines.append(f"At best {best:,.0f} {rule.VALUES}.")
    lines += [f"Closest to {p.forgotten}: {p.kept} (likeness {p.likeness:.2f} of 1)." for p in closest or []]
    if recipe:
        settings = [f"{f.name} {getattr(recipe.settings, f.name)}" for f in fields(Settings)]
        lines.append(f"Settings: {', '.join(settings)}.")
    for name, edit in basis.sites.items():
        ranks = f"rank {edit.rank}" + (f", kept rank {edit.v_r.shape[1]}" if edit.v_r.shape[1] else "")
        low, high = (float(edit.values.min()), float(edit.values.max())) if edit.rank else (0.0, 0.0)
        span = f"{low:.3g} to {high:.3g} {rule.VALUES}" if edit.rank else "unedited"
        lines.append(f"{name}: width {basis.shapes[name].width}, {ranks}, {span}")
    return "\n".join(lines)
