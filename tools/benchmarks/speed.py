"""What the pack costs, beside the host's own work in the same run: the tables of docs/tables/performance.md.

    python -m benchmarks.speed [--only SECTION ...] [--write]       (in tools/)

The miniature model as it is, and random weights in SD 1.5's and SDXL's structure at full width on small latents. Each
section in a process of its own. Times are compared pair by pair, turn by turn; a floor stands beside each: counted
operations at the rate that a matrix product of this machine reaches, or bytes at the rate of a copy. --write also
leaves docs/tables/performance.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from scipy.stats import linregress

from . import child, meters, tables
from .eigensolvers import eigensolvers
from .soak import soak

RECORD = tables.DOCUMENTS / "tables" / "performance.json"
PAIRS = 5
COUNTED = (32, 96, 192)  # prompts of which memory is compared; a capture encodes 32 at a time
# kind: latent size in pixels, prompts, recorded steps, dtype, pairs
SAMPLED = {
    "mini_sd": (64, 8, 5, "float32", 7),
    "sd15": (128, 2, 2, "float32", 15),
    "sdxl": (128, 2, 1, "float16", 9),
    "wan": (512, 2, 1, "float32", 9),
    "sd3": (512, 2, 1, "float32", 9),
    "zimage": (512, 2, 1, "float32", 9),
}
FEW = {  # transformers: their name, and how many tokens of text they are given
    "wan": ("Wan t2v", 512),
    "sd3": ("SD 3", 154),
    "zimage": ("Z-Image", 128),
}
ROWS = 60 * 2 * 10  # prompts, latents, steps


def loaded(kind: str):
    """MODEL and CLIP of a kind."""
    import inprocess

    inprocess.start()
    import torch

    import random_models
    import random_transformers

    if kind in FEW:
        family, tokens = FEW[kind]
        return random_transformers.load_transformer(family, real=True), random_transformers.RandomText(family, tokens)
    if kind == "mini_sd":
        return inprocess.load_checkpoint()[:2]
    model = random_models.load(
        random_models.random_state(kind, full=True, dtype=getattr(torch, SAMPLED[kind][3])),
        getattr(torch, SAMPLED[kind][3]),
    )
    return model, random_models.clip_of(model)


def spread(times) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*meters.ratio(times))


def sampling(kind: str) -> dict:
    """Capture against the same sampling without it, and the edited MODEL's sampling against the original's."""
    model, clip = loaded(kind)
    import comfy.model_management as management
    import torch
    from pure_pack.nodes.host import recording
    from pure_pack.nodes.host import sampling as host_sampling
    from pure_pack.nodes.host.sites import attention_sites
    from pure_pack.pure_core.prompts import anchor_prompts

    from benchmarks.erasers import ApplyProjection, BuildBasis, run, sample_alone

    size, count, steps, _, pairs = SAMPLED[kind]
    trajectory = host_sampling.Trajectory(10, steps, 1, 0, 1.0, size, size, "euler", "simple", 4)

    def lines(role):
        return anchor_prompts("\n".join(f"{role} picture {i}" for i in range(count)), role, "free text")

    prompts = lines("forget")

    def capture(which=prompts):
        return recording.capture(model, clip, which, trajectory)

    def bare(model=model):
        sample_alone(model, clip, prompts.texts, trajectory)

    with torch.inference_mode():
        capturing = meters.interleaved(bare, capture, pairs)
        memory = [meters.peak(f)[1] for f in (bare, capture, bare, capture)]
        forget, retain = capture(), capture(lines("retain"))
        edited = run(ApplyProjection, model=model, basis=run(BuildBasis, forget=forget, keep=retain)[0])[0]
        drawn = meters.interleaved(
            bare, lambda: bare(edited), pairs, lambda which: management.load_models_gpu([(model, edited)[which]])
        )  # putting patches on is not sampling
        work = meters.flops(bare)
        read = pooled_bytes(model, bare)
    layers, encoding = attention_sites(model), host_sampling.encode(clip, "")[0].nbytes
    bounds = [
        meters.surplus_bound(layers, encoding, *amount) for amount in ((count, count * steps), (math.inf, math.inf))
    ]
    row = [
        kind,
        f"{count} prompts x {steps} steps, {size} px, {pairs} pairs",
        median(capturing[0]),
        work / meters.product_rate(torch.float32),
        spread(capturing),
        f"{read / meters.copy_rate() / median(capturing[0]):.5f}",
        spread(drawn),
        f"{max(memory[0::2]):.0f}",
        f"{max(memory[1::2]):.0f}",
        f"{forget.nbytes / 2**20:.1f}",
        *(f"{b:.0f}" for b in bounds),
    ]
    return {
        "row": row,
        "bare and capture s": capturing,
        "original and edited s": drawn,
        "peaks of bare and capture, in turn, MB": memory,
    }


def pooled_bytes(model, run) -> float:
    """Bytes of all activations that a capture averages, each read once."""
    from pure_pack.nodes.host.observing import observed
    from pure_pack.nodes.host.sites import attention_sites

    total = [0.0]
    with observed(model, attention_sites(model), lambda _, h: total.__setitem__(0, total[0] + h.nbytes)) as watched:
        run(watched)
    return total[0]


SAMPLING_HEADER = [
    "model",
    "work",
    "sampling s",
    "its floor s",
    "capture / the same sampling",
    "floor of the surplus",
    "edited / original sampling",
    "peak of sampling MB",
    "peak of capture MB",
    "of it kept MB",
    "bound of the surplus MB",
    "the same of any number of prompts",
]


def synthetic(layers, directions: int):
    """Captures of ROWS rows a layer, forget and retain.

    a common mean, a falling spectrum, and as many directions that only forget has (0: none, but forget's spectrum is
    turned round).
    """
    import torch
    from pure_pack.pure_core.activations import Activations, Anchors, CaptureSettings, ModelIdentity
    from pure_pack.pure_core.moments import MomentsFitter

    settings, model = CaptureSettings(10, 10, 2, 0, 1.0, 512, 512, "euler", "normal"), ModelIdentity("random", "")
    generator, captured = torch.Generator().manual_seed(2), []
    scale = {layer.width: torch.arange(1, layer.width + 1).pow(-1.0) for layer in layers}
    for role in ("forget", "retain"):
        moments = {}
        for layer in layers:
            rows = (
                torch.randn(ROWS, layer.width, generator=generator)
                * (scale[layer.width] if directions or role == "retain" else scale[layer.width].flip(0))
                + 1
            )
            if role == "forget" and directions:
                rows[:, -directions:] += torch.randn(ROWS, directions, generator=generator)
            fitter = MomentsFitter(layer.width)
            for part in rows.split(60):
                fitter.add(part)
            moments[layer.name] = fitter.result()
        captured.append(
            Activations(
                role,
                moments,
                {name: m.sum[None] for name, m in moments.items()},
                (ROWS,),
                {layer.name: layer.shape for layer in layers},
                Anchors((role,), (role,)),
                settings,
                model,
            )
        )
    return captured


def basis_floor(layers, ranks, rule: str) -> float:
    """Operations that no way known here does without: the Gram matrix of the rows (of both roles by the paper's rule.

    By the contrast rule retain's second moment, its Cholesky factor and a triangular solve before it), and one product
    of it with the kept directions.
    """
    out = 0.0
    for layer, rank in zip(layers, ranks, strict=True):
        d, n = layer.width, min(ROWS, layer.width + 1)
        m = min(n, d)
        out += 2 * m * m * d if rule == "energy" else m * m * d + n * d * d + d**3 / 3 + n * d * d + 4 * d * d * rank
        out += 2 * m * m * rank
    return out


def algebra(kind: str) -> list[list]:
    """Basis, apply and LoRA for 60 prompts x 2 latents x 10 steps, with UCE's and CURE's edits of the same weights
    beside them."""
    model, _ = loaded(kind)
    import comfy.model_management as management
    import torch
    from pure_pack.nodes.host import lora_file, patches, precision
    from pure_pack.nodes.host.sites import attention_sites
    from pure_pack.nodes.host.weights import base_weight
    from pure_pack.pure_core.basis import Settings
    from pure_pack.pure_core.build import build_basis

    from benchmarks import peers

    layers, out = attention_sites(model), []
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        rate64, rate32 = meters.product_rate(torch.float64), meters.product_rate(torch.float32)
        weights = [base_weight(model, layer.key(p)) for layer in layers for p in ("keys", "values")]
        management.load_models_gpu([model])
        for label, directions, settings in (
            ("8 directions a layer", 8, Settings()),
            ("the spectrum turned round", 0, Settings()),
            ("the paper's rule", 8, Settings(rule="energy", centering="none")),
        ):
            forget, retain = synthetic(layers, directions)
            ((basis, _), building), memory = meters.peak(meters.timed, build_basis, forget, retain, settings)
            ranks = [basis.sites[layer.name].rank for layer in layers]
            (edited, *_), applying = meters.timed(patches.apply_basis, model, basis, 1.0, "values", 1, "all")
            rounding = meters.timed(precision.residual, edited)[1]
            putting = meters.timed(management.load_models_gpu, [edited])[1]
            lora = meters.timed(
                lora_file.save_lora, edited, Path(folder) / f"{label}.safetensors", "fp16", False, lambda: None
            )[1]
            product = sum(4 * layer.width * rank * layer.context for layer, rank in zip(layers, ranks, strict=True))
            name = f"{kind}, {label} (ranks {min(ranks)} to {max(ranks)})"
            out.append(
                [
                    name,
                    building,
                    basis_floor(layers, ranks, settings.rule) / rate64,
                    f"{memory:.0f}",
                    applying,
                    rounding,
                    putting,
                    product / rate32,
                    lora,
                ]
            )
            management.load_models_gpu([model])
        tokens = torch.randn(60, layers[0].context, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        for name, solve in (
            ("UCE", lambda: peers.uce_edit(tokens[:30], tokens[:1], tokens[30:])),
            ("CURE", lambda: peers.cure_edit(tokens[:30], tokens[30:])),
        ):
            edit, solving = meters.timed(solve)
            multiplying = meters.timed(lambda e: [w.float() @ e for w in weights], edit.float())[1]
            out.append(
                [
                    f"{kind}, {name}",
                    solving,
                    "-",
                    "-",
                    multiplying,
                    "-",
                    "-",
                    sum(2 * w.numel() * w.shape[1] for w in weights) / rate32,
                    "-",
                ]
            )
    return out


EIGENSOLVERS_HEADER = [
    "size, spectrum",
    "kept",
    "all pairs (eigh) ms",
    "leading, proved (ARPACK) ms",
    "torch.lobpcg ms",
]
ALGEBRA_HEADER = [
    "",
    "basis s",
    "its floor s",
    "peak MB",
    "apply s",
    "rounding of the edit s",
    "host puts the patches on s",
    "floor of the products s",
    "LoRA s",
]


def files(_: str) -> dict:
    """Our savers beside the host's own checkpoint saver, on the miniature model.

    Each file of one edited MODEL, written PAIRS times.
    """
    import inprocess

    inprocess.start()
    import comfy.sd
    import torch
    from pure_pack.nodes.host import checkpoint, lora_file
    from pure_pack.pure_core.basis import Settings
    from pure_pack.pure_core.basis_file import save_basis
    from pure_pack.pure_core.build import build_basis

    from benchmarks.erasers import ApplyProjection, attention_sites, run

    model, clip, vae = inprocess.load_checkpoint()

    def done():
        return None

    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        basis = build_basis(*synthetic(attention_sites(model), 8), Settings())[0]
        edited, target = run(ApplyProjection, model=model, basis=basis)[0], Path(folder) / "file.safetensors"

        def host():
            return comfy.sd.save_checkpoint(str(target), edited, clip, vae)

        out, raw = [], {}
        for name, save in (
            ("checkpoint", lambda: checkpoint.save_checkpoint(edited, clip, vae, target, False, done)),
            ("LoRA", lambda: lora_file.save_lora(edited, target, "fp16", False, done)),
            ("basis", lambda: save_basis(basis, target, False)),
        ):
            target.unlink(missing_ok=True)
            times = meters.interleaved(host, save, PAIRS, lambda which: target.unlink(missing_ok=True))
            size = target.stat().st_size
            peaks = []
            for f in (host, save):
                target.unlink(missing_ok=True)
                peaks.append(meters.peak(f)[1])
            raw[f"host's checkpoint and our {name} s"] = times
            out.append(
                [
                    name,
                    f"{size / 2**20:.1f}",
                    median(times[1]),
                    size / meters.copy_rate(),
                    spread(times),
                    *(f"{p:.0f}" for p in peaks),
                ]
            )
    return {"rows": out, **raw}


FILES_HEADER = [
    "file",
    "MB",
    "seconds",
    "floor: copying it once",
    "/ the host's own checkpoint",
    "peak of the host's MB",
    "peak of ours MB",
]


def growth(_: str) -> dict:
    """Capture time against prompts, steps and latents, memory against prompts.

    Time of basis, edit and LoRA against layers and width.
    """
    model, clip = loaded("mini_sd")
    import torch
    from pure_pack.nodes.host import recording
    from pure_pack.nodes.host.sampling import Trajectory
    from pure_pack.nodes.host.sites import attention_sites
    from pure_pack.pure_core.basis import Settings
    from pure_pack.pure_core.build import build_basis
    from pure_pack.pure_core.lora import lora_factors, lora_tensors
    from pure_pack.pure_core.projection import weight_delta
    from pure_pack.pure_core.prompts import anchor_prompts

    base = Trajectory(10, 2, 1, 0, 1.0, 64, 64, "euler", "normal", 4)

    def prompts(n):
        return anchor_prompts("\n".join(f"picture number {i}" for i in range(n)), "forget", "free text")

    def capture(n, **changes):
        return recording.capture(model, clip, prompts(n), replace(base, **changes))

    fits, fitted = (
        [],
        {
            "prompts": ([8, 16, 24, 32, 48], lambda v: capture(v)),
            "steps": ([1, 2, 4, 6, 8, 10], lambda v: capture(4, recorded_steps=v)),
            "seeds": ([1, 2, 3, 4, 6], lambda v: capture(4, seeds=v)),
        },
    )
    with torch.inference_mode():
        capture(4)
        for name, (values, make) in fitted.items():
            times = meters.best([partial(make, v) for v in values])
            line = linregress(values, times)
            fits.append(
                [
                    name,
                    ", ".join(map(str, values)),
                    ", ".join(f"{t:.2f}" for t in times),
                    f"{line.intercept:.3f} + {line.slope:.4f} n (+- {line.stderr:.4f})",
                    f"{line.rvalue**2:.4f}",
                ]
            )
        first = attention_sites(model)[0]
        made = []
        for label, shapes in (
            ("layers", [(640, 2), (640, 4), (640, 8), (640, 16)]),
            ("width", [(160, 8), (320, 8), (640, 8), (1280, 8)]),
        ):
            times: dict[str, list[float]] = {"basis": [], "edited weights": [], "LoRA": []}
            for width, count in shapes:
                layers = [replace(first, name=f"l{i}", width=width) for i in range(count)]
                forget, retain = synthetic(layers, 8)
                edits = build_basis(forget, retain, Settings())[0].sites.values()
                weights = [torch.randn(width, first.context) for _ in layers]
                pairs = list(zip(weights, edits, strict=True))
                work = {
                    "basis": lambda f=forget, r=retain: build_basis(f, r, Settings()),
                    "edited weights": lambda p=pairs: [w - weight_delta(w, b.u, b.m, "left") for w, b in p],
                    "LoRA": lambda p=pairs: [
                        lora_tensors("w", *lora_factors(w, b.u, b.m, "left"), "fp16") for w, b in p
                    ],
                }
                for what, function in work.items():
                    times[what].extend(meters.best([function], 3))
            grown = [count if label == "layers" else width for width, count in shapes]
            for what, part in times.items():
                line = linregress([math.log(v) for v in grown], [math.log(t) for t in part])
                made.append(
                    [
                        what,
                        label,
                        ", ".join(map(str, grown)),
                        ", ".join(f"{t:.4f}" for t in part),
                        f"{line.slope:.2f} +- {line.stderr:.2f}",
                    ]
                )

        def peaks():
            return [meters.peak(lambda n=n: capture(n, recorded_steps=1).nbytes / 2**20) for n in COUNTED]

        as_it_is = peaks()
        meters.give_back_at_once()  # from here on times would be others
        rows = [
            [n, f"{high:.0f}", f"{used:.0f}", f"{kept:.2f}"]
            for n, (kept, high), (_, used) in zip(COUNTED, as_it_is, peaks(), strict=True)
        ]
    return {"fits": fits, "memory": rows, "basis": made}


def profile(_: str) -> list[list]:
    """Where the time of building a basis goes: SDXL's widest layer, 1,200 rows of each role."""
    import inprocess

    inprocess.start()
    import torch
    from pure_pack.nodes.host.sites import AttentionSite
    from pure_pack.pure_core.basis import Settings
    from pure_pack.pure_core.build import build_basis
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with torch.inference_mode():
        forget, retain = synthetic([AttentionSite("layer", 1280, 20, 2048, 0.0, {}, None, "", "")], 8)
        build_basis(forget, retain, Settings())
        with profiler(activities=[ProfilerActivity.CPU]) as seen:
            build_basis(forget, retain, Settings())
    events = sorted(seen.key_averages(), key=lambda e: -e.self_cpu_time_total)
    total = sum(e.self_cpu_time_total for e in events)
    return [
        [
            e.key.removeprefix("aten::"),
            e.count,
            f"{e.self_cpu_time_total / 1e6:.3f}",
            f"{e.self_cpu_time_total / total:.0%}",
        ]
        for e in events[:6]
    ]


SECTIONS = {
    "sampling": (sampling, tuple(SAMPLED)),
    "algebra": (algebra, ("sd15", "sdxl")),
    "growth": (growth, ("",)),
    "files": (files, ("",)),
    "profile": (profile, ("",)),
    "eigensolvers": (eigensolvers, ("",)),
    "soak": (soak, ("",)),
}


def written(section: str, results: list) -> dict[str, str]:
    """The tables of a section."""
    if section == "sampling":
        return {"sampling": tables.markdown(SAMPLING_HEADER, [part["row"] for part in results])}
    if section == "algebra":
        return {"algebra": tables.markdown(ALGEBRA_HEADER, [row for part in results for row in part])}
    if section == "files":
        return {"files": tables.markdown(FILES_HEADER, results[0]["rows"])}
    if section == "profile":
        return {"profile": tables.markdown(["operation", "calls", "seconds", "share"], results[0])}
    if section == "eigensolvers":
        return {"eigensolvers": tables.markdown(EIGENSOLVERS_HEADER, results[0])}
    if section == "soak":
        return {
            "soak": tables.markdown(
                ["", "after warming up", "at the end", "highest", "slope and its standard error"], results[0]["rows"]
            )
        }
    grown = results[0]
    return {
        "growth of capture": tables.markdown(["against", "n", "seconds", "fit", "R^2"], grown["fits"]),
        "memory of capture": tables.markdown(
            ["prompts", "peak MB", "peak MB, freed pieces given back at once", "kept MB"], grown["memory"]
        ),
        "growth of basis": tables.markdown(["of", "against", "n", "seconds", "exponent"], grown["basis"]),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--part", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        child.give(SECTIONS[options.part[0]][0](options.part[1]))
        return 0
    started = time.monotonic()
    for section in options.only:
        results = [child.result_of("benchmarks.speed", "--part", section, kind) for kind in SECTIONS[section][1]]
        for name, table in written(section, results).items():
            print(f"\n## {name} ({time.monotonic() - started:.0f} s)\n\n{table}", flush=True)
            if options.write:
                tables.fill({name: table})
        if options.write:
            kept = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
            RECORD.write_text(json.dumps({**kept, section: results}, indent=1), encoding="utf-8")
    if options.write and options.only == list(SECTIONS):
        minutes, cores = (time.monotonic() - started) / 60, len(os.sched_getaffinity(0))
        tables.fill({"speed: time": f"All of it took {minutes:.0f} minutes on {cores} cores."})
    return 0


if __name__ == "__main__":
    sys.exit(main())
