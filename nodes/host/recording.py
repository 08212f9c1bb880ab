"""Records rows along the first steps of the host's own sampling.

A row is the mean over the picture's tokens of what text renders at a site (nodes/host/observing.py), one per prompt,
latent and step, as in PURE (arXiv 2605.25765); only the conditional half counts. Where several heads share one of the
values' heads (grouped queries), each of them is a row: one E per value head acts on all of them alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ...pure_core.activations import Activations, Anchors
from ...pure_core.errors import PureError
from ...pure_core.moments import MomentsFitter, RowBuffer
from ...pure_core.prompts import Prompts
from .identity import identify
from .observing import observed
from .reporting import Progress
from .sampling import Conditioning, Job, Trajectory, batched, encode_all, encode_empty, jobs_of, sample, start_noise
from .sites import AttentionSite, attention_sites, diffusion_model, refuse_replaced_attention

BLOCK = 64  # rows that wait on the CPU before the collectors get them: 21 MB for SDXL
# Prompts whose conditionings are held at once: 8 MB for SD 1.5, 20 for SDXL; more would only spare a small GPU a change
# between CLIP and diffusion model.
ENCODED = 32


def capture(model: Any, clip: Any, prompts: Prompts, trajectory: Trajectory) -> Activations:
    """The moments of every site over prompts x seeds x recorded steps; the MODEL is left as it was."""
    if not prompts.pairs:
        raise PureError("There are no prompts to capture. Write what to keep, one concept per line.")
    sites = recordable_sites(model)
    empty = {"": encode_empty(model, clip, sites)}
    identity = identify(model, clip, sites)
    concepts = prompts.concepts
    recorder = Recorder(sites, MomentsFitter, len(concepts))
    jobs = jobs_of([(text, concepts.index(concept)) for concept, text in prompts.pairs], trajectory.seeds)
    progress = Progress(model, len(jobs) * trajectory.recorded_steps)
    size = ENCODED * trajectory.seeds
    for part in (jobs[i : i + size] for i in range(0, len(jobs), size)):
        conditioning = encode_all(clip, [job.text for job in part], empty)
        run(model, conditioning, part, trajectory, sites, lambda step: recorder.add(step.rows, step.labels), progress)
    each = trajectory.recorded_steps * sites[0].shares
    moments = recorder.results(len(jobs) * each)
    per_concept = [sum(name == concept for name, _ in prompts.pairs) for concept in concepts]
    rows = tuple(count * trajectory.seeds * each for count in per_concept)
    shapes = {site.name: site.shape for site in sites}
    anchors = Anchors(concepts, prompts.texts)
    return Activations(prompts.role, moments, recorder.sums, rows, shapes, anchors, trajectory.settings, identity)


def recordable_sites(model: Any) -> list[AttentionSite]:
    """The attention sites of a MODEL whose activations are its own; raises PureError where they are not."""
    refuse_replaced_attention(model)
    return attention_sites(model)


class Step(NamedTuple):
    """One step of one batch: its rows per site, (n, d), the labels that they belong to, the batch's number, and what
    the MODEL was fed, on its device."""

    rows: dict[str, torch.Tensor]
    labels: Sequence[Hashable]
    batch: int
    x: torch.Tensor


def run(
    model: Any,
    conditioning: dict[str, Conditioning],
    jobs: list[Job],
    trajectory: Trajectory,
    sites: list[AttentionSite],
    take: Callable[[Step], None],
    progress: Progress,
    inputs: list[list[torch.Tensor]] | None = None,
    after_output: bool = False,
) -> None:
    """Samples jobs, and hands every step to `take`.

    inputs: per batch and step what the MODEL is fed instead of following its own trajectory. after_output: rows of what
    the sites' output projections make of h (cross-attention), for measures.
    """
    jobs = sorted(jobs, key=lambda job: conditioning[job.text][0].shape[1])  # one length of conditioning per batch
    latents = start_noise(model, trajectory.seed, trajectory.seeds, trajectory.width, trajectory.height)
    pool = Pool()
    with pool.reading_halves(model), observed(model, sites, pool.see, after_output) as watched:
        size = 1 if sites[0].family.alone else trajectory.batch_size
        for i, batch in enumerate(batched(jobs, conditioning, size)):
            pool.begin(len(batch))
            labels = [job.label for job in batch for _ in range(sites[0].shares)]
            after_step = partial(_hand_over, pool, take, progress, labels, i)
            sample(watched, conditioning, latents, batch, trajectory, after_step, inputs[i] if inputs else None)


def _hand_over(
    pool: Pool,
    take: Callable[[Step], None],
    progress: Progress,
    labels: Sequence[Hashable],
    batch: int,
    step: int,
    denoised: Any,
    x: torch.Tensor,
    total: int,
) -> None:
    """What the sampler calls after each step, with the last four."""
    take(Step(pool.rows(), labels, batch, x))
    progress.step(denoised, len(x))


class Pool:
    """The rows of one step: pooled on the device as the sites run, and moved to the CPU together after it."""

    def __init__(self) -> None:
        self._pooled: dict[str, torch.Tensor] = {}
        self._halves: list[int] = []
        self._size = 0

    @contextlib.contextmanager
    def reading_halves(self, model: Any) -> Iterator[None]:
        """A hook that reads, before each run of the MODEL, which parts of its batch are conditional."""

        def hook(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._halves = list(kwargs.get("transformer_options", {}).get("cond_or_uncond", []))

        handle = diffusion_model(model).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def begin(self, size: int) -> None:
        """A batch of so many jobs comes."""
        self._size, self._pooled = size, {}

    def see(self, site: AttentionSite, h: torch.Tensor) -> None:
        """Keeps the conditional half of h (halves x size, tokens, d), averaged over the tokens in float32."""
        if h.shape[0] != len(self._halves) * self._size:
            raise PureError(
                f"Layer {site.name} ran on a batch of {h.shape[0]}, not {len(self._halves)} x {self._size}: a node "
                "upstream splits or tiles the sampling. Connect the MODEL from before it."
            )
        for half, part in zip(self._halves, h.split(self._size), strict=True):
            if half == 0:
                if site.name in self._pooled:
                    raise PureError(
                        f"Layer {site.name} ran more than once in a step: a node upstream repeats or tiles the "
                        "sampling. Connect the MODEL from before it."
                    )
                self._pooled[site.name] = per_value_head(part.mean(1, dtype=torch.float32), site)

    def rows(self) -> dict[str, torch.Tensor]:
        """The rows of the step per site, (n, d) on the CPU, by one transfer; none are kept."""
        pooled, self._pooled = self._pooled, {}
        if not pooled:
            return {}
        together = torch.cat(list(pooled.values()), 1).cpu()
        return dict(zip(pooled, together.split([rows.shape[1] for rows in pooled.values()], 1), strict=True))


def per_value_head(rows: torch.Tensor, site: AttentionSite) -> torch.Tensor:
    """Rows (n, shares x d) as (n x shares, d): where heads share one of the values' heads, each of them is a row."""
    heads: torch.Tensor = rows.unflatten(1, (site.heads, site.shares, site.width // site.heads))
    return heads.transpose(1, 2).reshape(-1, site.width)


class Recorder:
    """Gathers the rows of all steps, block by block: per site a collector of them, and the sum of each label's rows.

    collector: MomentsFitter or RowBuffer. labels: how many there are, 0 to k - 1; 0 where sums are not wanted.
    """

    def __init__(self, sites: list[AttentionSite], collector: type, labels: int = 0):
        self.collectors = {site.name: collector(site.width) for site in sites}
        self.sums = {site.name: torch.zeros(labels, site.width, dtype=torch.float64) for site in sites}
        self._counts = dict.fromkeys(self.collectors, 0)
        self._block: dict[str, list[torch.Tensor]] = {}
        self._labels: list[Hashable] = []

    def add(self, rows: dict[str, torch.Tensor], labels: Sequence[Hashable]) -> None:
        """The rows of one step: per site (n, d), with the n labels that they belong to."""
        if self._block and rows.keys() != self._block.keys():
            self.flush()
        for name, part in rows.items():
            self._block.setdefault(name, []).append(part)
        self._labels += labels if rows else []
        if len(self._labels) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Gives the rows that are waiting to the collectors."""
        for name, parts in self._block.items():
            rows = torch.cat(parts)
            self.collectors[name].add(rows)
            self._counts[name] += len(rows)
            if len(self.sums[name]):
                self.sums[name].index_add_(0, torch.tensor(self._labels), rows.double())
        self._block, self._labels = {}, []

    def results(self, expected: int) -> dict[str, Any]:
        """What the collectors made of the rows; raises PureError unless every site saw exactly the expected rows."""
        self.flush()
        short = [name for name, count in self._counts.items() if count != expected]
        if short:
            raise PureError(
                f"Layer {short[0]} gave {self._counts[short[0]]} recordings and not {expected}: something upstream "
                "bypasses the attention layers (TorchCompile, caching or tiling). Connect the MODEL from before it."
            )
        return {name: collector.result() for name, collector in self.collectors.items()}


def record_rows(
    model: Any,
    conditioning: dict[str, Conditioning],
    jobs: list[Job],
    trajectory: Trajectory,
    sites: list[AttentionSite],
    progress: Progress,
    inputs: list[list[torch.Tensor]] | None = None,
) -> tuple[dict[str, torch.Tensor], list[Hashable], list[list[torch.Tensor]]]:
    """All rows per site, in the order in which they were sampled; their labels; and per batch and step what the MODEL
    was fed, on the CPU. inputs: as `run` takes them."""
    recorder, labels, fed = Recorder(sites, RowBuffer), list[Hashable](), list[list[torch.Tensor]]()

    def take(step: Step) -> None:
        recorder.add(step.rows, step.labels)
        labels.extend(step.labels)
        if step.batch == len(fed):
            fed.append([])
        fed[step.batch].append(step.x.to("cpu", copy=True))

    run(model, conditioning, jobs, trajectory, sites, take, progress, inputs, not sites[0].family.joint)
    return recorder.results(len(jobs) * trajectory.recorded_steps * sites[0].shares), labels, fed
