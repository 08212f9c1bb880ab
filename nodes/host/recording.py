"""Records post-attention activations along the first steps of the host's own sampling.

Recorded is h = softmax(Q K^T / sqrt(d)) V, heads concatenated, before `to_out`, as PURE (arXiv 2605.25765) has it; a
row is its mean over the spatial axis, one per prompt, latent and step; only the conditional half counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ...pure_core.activations import Activations
from ...pure_core.errors import PureError
from ...pure_core.moments import MomentsFitter
from ...pure_core.prompts import Prompts
from .layers import Layer, cross_attention_layers, fingerprint, refuse_replaced_attention, unet_of
from .reporting import Progress
from .sampling import Trajectory, batched, encode, encode_all, jobs_of, sample, start_noise, texts_of

BLOCK = 64  # rows that wait on the CPU before the collectors get them: 21 MB for SDXL
# prompts whose conditionings are held at once: 8 MB for SD 1.5, 20 for SDXL; more would only spare a small GPU a change
# between CLIP and U-Net
ENCODED = 32


def capture(model, clip, prompts: Prompts, trajectory: Trajectory) -> Activations:
    """The moments of every cross-attention layer over prompts x latents x recorded steps.

    The MODEL is left as it was.
    """
    layers = recordable_layers(model)
    texts, recorder, empty = texts_of(prompts), Recorder(layers), {"": encode(clip, "")}
    expected = len(texts) * trajectory.latents * trajectory.recorded_steps
    progress = Progress(model, expected)
    for part in (texts[i : i + ENCODED] for i in range(0, len(texts), ENCODED)):
        run(model, encode_all(clip, part, empty), jobs_of(part, trajectory.latents), trajectory, recorder, progress)
    moments = recorder.results(expected)
    provenance = {
        **trajectory.__dict__,
        "role": prompts.role,
        "concepts": list(prompts.concepts),
        "prompts": texts,
        "context_width": layers[0].context,
        "fingerprint": fingerprint(model, layers),
        "model": type(model.model).__name__,
    }
    provenance.pop("batch_size")  # changes nothing of the result
    return Activations(moments, {layer.name: layer.heads for layer in layers}, provenance)


def recordable_layers(model) -> list[Layer]:
    """The cross-attention layers of a MODEL whose activations are its own; raises PureError where they are not."""
    refuse_replaced_attention(model)
    return cross_attention_layers(model)


def record(
    model,
    conditioning: dict,
    jobs: list[tuple[str, int]],
    trajectory: Trajectory,
    recorder: Recorder,
    progress: Progress,
    **feed,
) -> dict:
    """What the recorder's collectors make of these jobs' rows, per layer; feed: `run`'s keep or inputs."""
    run(model, conditioning, jobs, trajectory, recorder, progress, **feed)
    return recorder.results(len(jobs) * trajectory.recorded_steps)


def run(
    model,
    conditioning: dict,
    jobs: list[tuple[str, int]],
    trajectory: Trajectory,
    recorder: Recorder,
    progress: Progress,
    keep: list | None = None,
    inputs: list[list[torch.Tensor]] | None = None,
) -> None:
    """Samples (prompt, latent) jobs while the recorder looks on.

    keep: a list that takes, per batch, what the MODEL was fed at each step, on the CPU. inputs: such a list; the MODEL
    is fed the same again instead of following its own trajectory.
    """
    jobs = sorted(
        jobs, key=lambda job: conditioning[job[0]][0].shape[1]
    )  # one length of conditioning per batch; stable otherwise
    latents = start_noise(model, trajectory.seed, trajectory.latents, trajectory.width, trajectory.height)
    with recorder.attached(unet_of(model)):
        for i, batch in enumerate(batched(jobs, conditioning, trajectory.batch_size)):
            recorder.begin(len(batch))
            if keep is not None:
                keep.append([])

            def after_step(step, denoised, x, total):
                recorder.collect()
                if keep is not None:
                    keep[-1].append(x.to("cpu", copy=True))
                progress.step(denoised, len(x))

            sample(model, conditioning, latents, batch, trajectory, after_step, inputs[i] if inputs else None)


class Recorder:
    """Pools rows on the device as the layers run, moves them to the CPU once a step, and hands them on block by block.

    collector: what a layer's rows are given to, MomentsFitter or RowKeeper. after_output: rows of what `to_out` makes
    of h, which an edit of keys, values or output all change; for measures.
    """

    def __init__(self, layers: list[Layer], collector: type = MomentsFitter, after_output: bool = False):
        self.layers, self.after_output = layers, after_output
        self.fitters = {layer.name: collector(layer.width) for layer in layers}
        self.counts = dict.fromkeys(self.fitters, 0)
        self._pooled: dict[str, torch.Tensor] = {}
        self._block: list[torch.Tensor] = []
        self._names: list[str] = []
        self._widths: list[int] = []
        self._halves: list[int] = []
        self._size = 0

    @contextlib.contextmanager
    def attached(self, unet: torch.nn.Module) -> Iterator[None]:
        """Hooks on the U-Net's cross-attention for the length of the block.

        All of them are gone after it, however it ends.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(unet.register_forward_pre_hook(self._see_options, with_kwargs=True).remove)
            for layer in self.layers:
                target = unet.get_submodule(f"{layer.name}.to_out")
                if self.after_output:
                    hook = target.register_forward_hook(lambda _, args, out, name=layer.name: self._pool(name, out))
                else:
                    hook = target.register_forward_pre_hook(lambda _, args, name=layer.name: self._pool(name, args[0]))
                stack.callback(hook.remove)
            yield

    def begin(self, size: int) -> None:
        """A batch of `size` (prompt, latent) pairs comes."""
        self._size, self._pooled = size, {}

    @staticmethod
    def rows_of(h: torch.Tensor) -> torch.Tensor:
        """(B, positions, d) activations -> the rows that are kept.

        (B, d) float32 means over the positions, as in the paper.
        """
        return h.mean(1, dtype=torch.float32)

    def _see_options(self, _, args, kwargs) -> None:
        """Before the U-Net runs: which parts of its batch are conditional (0) and unconditional (1)."""
        self._halves = list(kwargs.get("transformer_options", {}).get("cond_or_uncond", []))

    def _pool(self, name: str, h: torch.Tensor) -> None:
        """Keeps the conditional half of h (halves x size, positions, d), averaged over the positions in float32."""
        if h.shape[0] != len(self._halves) * self._size:
            raise PureError(
                f"Layer {name} ran on a batch of {h.shape[0]}, not {len(self._halves)} x {self._size}: a node "
                "upstream splits or tiles the sampling; connect the MODEL from before it."
            )
        for half, rows in zip(self._halves, h.split(self._size), strict=True):
            if half == 0:
                if name in self._pooled:
                    raise PureError(
                        f"Layer {name} ran more than once in a step: a node upstream repeats or tiles the "
                        "sampling; connect the MODEL from before it."
                    )
                self._pooled[name] = self.rows_of(rows)

    def collect(self) -> None:
        """After a step: one transfer of everything pooled in it; the collectors get BLOCK rows at a time."""
        names = list(self._pooled)
        if names:
            if self._names and names != self._names:
                self.hand_on()
            self._names, self._widths = names, [self._pooled[n].shape[1] for n in names]
            self._block.append(torch.cat([self._pooled[n] for n in names], 1).cpu())
            if sum(len(rows) for rows in self._block) >= BLOCK:
                self.hand_on()
        self._pooled = {}

    def hand_on(self) -> None:
        """Gives the rows that are waiting to the collectors."""
        if self._block:
            for name, part in zip(self._names, torch.cat(self._block).split(self._widths, 1), strict=True):
                self.fitters[name].add(part)
                self.counts[name] += part.shape[0]
        self._block = []

    def results(self, expected: int) -> dict:
        """What the collectors made of the rows; raises PureError unless every layer saw exactly the expected rows."""
        self.hand_on()
        short = [n for n, count in self.counts.items() if count != expected]
        if short:
            raise PureError(
                f"Layer {short[0]} gave {self.counts[short[0]]} rows and not {expected}: something upstream "
                "bypasses the attention layers (TorchCompile, caching or tiling); connect the MODEL from before "
                "it."
            )
        return {name: fitter.result() for name, fitter in self.fitters.items()}
