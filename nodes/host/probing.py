"""Feeds two MODELs the same noised latents and compares what their attention to text renders."""

from __future__ import annotations

from typing import Any

from ...pure_core import leakage
from ...pure_core.activations import site_difference
from ...pure_core.errors import PureError
from ...pure_core.prompts import Prompts
from .recording import record_rows, recordable_sites
from .reporting import Progress
from .sampling import Trajectory, encode_all, encode_empty, jobs_of
from .sites import AttentionSite


def common_sites(original: Any, edited: Any) -> list[AttentionSite]:
    """The attention sites of both MODELs; raises PureError where they differ."""
    sites, others = recordable_sites(original), recordable_sites(edited)
    before, after = ({site.name: site.shape for site in part} for part in (sites, others))
    difference = site_difference(before, after, "the original MODEL", "the edited one")
    if difference:
        raise PureError(f"These are not one MODEL before and after an edit: {difference}.")
    return sites


def check_probes(concept: Prompts, retain: Prompts) -> None:
    """Raises PureError where the two wires are swapped, or a concept has one probe only."""
    if concept.role != "forget" or retain.role != "retain":
        raise PureError("concept_probes takes prompts to forget, and keep_probes prompts to keep: swap the two wires.")
    if not retain.pairs:
        raise PureError("There are no keep probes. Write what should have stayed, one concept per line.")
    leakage.halves_of(concept)


def probe_evaluations(concept: Prompts, retain: Prompts, trajectory: Trajectory) -> int:
    """Evaluations of a MODEL on single samples that a measure takes."""
    return trajectory.evaluations(2 * (len(concept.pairs) + len(retain.pairs)))


def measure_leakage(
    original: Any, edited: Any, clip: Any, concept: Prompts, retain: Prompts, trajectory: Trajectory
) -> leakage.Measured:
    """What is left of each concept, and how far what should stay has moved; no basis is asked."""
    check_probes(concept, retain)
    sites = common_sites(original, edited)
    known = {"": encode_empty(original, clip, sites)}
    conditioning = encode_all(clip, [*concept.texts, *retain.texts], known)
    halves = leakage.halves_of(concept)
    jobs = {
        "concept": jobs_of([(text, (name, halves[text])) for name, text in concept.pairs], trajectory.seeds),
        "retain": jobs_of([(text, None) for text in retain.texts], trajectory.seeds),
    }
    progress = Progress(original, 2 * sum(map(len, jobs.values())) * trajectory.recorded_steps)
    before, after, labels = {}, {}, list[Any]()
    for role, part in jobs.items():
        before[role], own, fed = record_rows(original, conditioning, part, trajectory, sites, progress)
        after[role], *_ = record_rows(edited, conditioning, part, trajectory, sites, progress, fed)
        labels = own if role == "concept" else labels
    return leakage.measure(before["concept"], after["concept"], labels, before["retain"], after["retain"])
