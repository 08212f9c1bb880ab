"""Everything that docs/evidence.md and its tables say in numbers.

PURE by the pack's nodes against its closed-form peers; attacks and ablations.

    python -m benchmarks.efficacy [--only main styles attacks ablations joint leakage] [--write]       (in tools/)

Edits by PURE are made by the nodes in a real ComfyUI, in this process. Pictures are drawn by the narrow U-Net from the
leading block of the edited weights (a test shows that it draws what the host draws), by one process per core. Settings
are tried on the `choose` prompts and seeds and reported on `test`, which share none. --write puts the tables into
docs/. Sections that were not asked for keep their tables.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor

import torch
from scipy.stats import spearmanr

from . import attacks, judging, tables
from .methods import ALONE, FORMER, PAPER, PAPER_TRIED, PEERS, PURE_STYLES_TRIED, PURE_TRIED, Pure
from .tables import DEFAULTS, UNEDITED
from mini_sd import studio
from mini_sd.world import ARTISTS, CHARACTERS

FULL = {
    "each": 200,
    "others": 10,
    "sharing": 20,
    "shapes": 132,
}  # of a test of PURE with its defaults: over 1,000 pictures of others and of shapes in all
PART = {"each": 24, "others": 3, "sharing": 8, "shapes": 18}  # of a test of everything else
TRY = {"each": 8, "others": 1, "sharing": 6, "shapes": 8}  # of a setting on the choose set
SOUP = 16
ASKED_SHORT = {
    "PURE, name alone": {"descriptions": 0},
}  # beside the peers' defaults, which have the name alone


PAPERS_RULE = "PURE by the paper's rule"
NOT_ATTACKED = ("negative prompt", "CURE")  # no edit; one that leaves most of the characters


class Pool:
    """One drawing process per core.

    Each remembers the unedited model's pictures, so work of one target goes to one of them (lane), where there are
    targets enough for all.
    """

    def __init__(self):
        cores = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        self._executors = [
            ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
            )
            for _ in range(cores)
        ]
        self.lanes, self._turn = cores, itertools.count()

    def call(self, function, *args, lane: int | None = None) -> Future:
        return self._executors[(next(self._turn) if lane is None else lane) % self.lanes].submit(function, *args)

    def see(self, weights, entries, negative="", lane: int | None = None) -> Future:
        return self.call(judging.see, weights, entries, negative, lane=lane)


def entries_of(target: str, split: str, size: dict, soups: int = 0) -> list[dict]:
    if target in CHARACTERS:
        return judging.character_entries(target, split, **size) + (attacks.soups(target, split, soups) if soups else [])
    return judging.style_entries(target, split, size["each"], 4 * size["others"], size["shapes"])


def run_all(pool: Pool, rows: dict, targets, split: str, sizes, soups: dict) -> dict[str, list]:
    """label -> per target what was seen; rows: label -> function of the target that gives weights, negative."""
    waiting = {}
    for label, make in rows.items():
        for i, target in enumerate(targets):
            weights, minus = make(target)
            lane = i if len(targets) % pool.lanes == 0 else None
            waiting.setdefault(label, []).append(
                pool.see(weights, entries_of(target, split, sizes(label)) + soups.get(target, []), minus, lane)
            )
    return {label: [f.result() for f in futures] for label, futures in waiting.items()}


def choose(pool: Pool, pure: Pure, targets, tried_pure: dict) -> tuple[dict, str]:
    """The best setting of each eraser by the harmonic mean on the choose set, and the table of all that were tried."""
    best, table, groups = {}, [], ["named", "name_free", "others", "shapes", "background"]
    todo = {
        name: {k: (lambda t, v=v: pure.edit(t, v)) for k, v in tried.items()}
        for name, tried in (("PURE", tried_pure), (PAPERS_RULE, PAPER_TRIED))
    }
    todo |= {
        name: {k: (lambda t, v=v, make=make: make(t, v)) for k, v in tried.items()}
        for name, (make, tried) in PEERS.items()
    }
    for name, rows in todo.items():
        seen = run_all(pool, rows, targets, "choose", lambda label: TRY, {})
        scored = {label: [judging.shares(s) for s in part] for label, part in seen.items()}
        value = {label: judging.mean([judging.harmonic(s) for s in part]) for label, part in scored.items()}
        best[name] = max(value, key=value.get)
        for label, part in scored.items():
            table.append(
                [
                    f"{name}: {label}" + (" (best)" if label == best[name] else ""),
                    *(tables.pooled(part, g).value for g in groups),
                    value[label],
                ]
            )
    return best, tables.markdown(tables.counted("tried", part, groups, "harmonic mean"), table)


def distances(part: list[list[dict]]) -> tuple[float, float, float]:
    """Mean distance of retained pictures to the unedited model's.

    Autoencoder's redrawing error on erased prompts, after and before.
    """
    kept = [e["distance"] for seen in part for e in seen if e["group"].startswith("others")]
    erased = [e for seen in part for e in seen if e["group"] in ("named", "name_free")]
    return (
        judging.mean(kept),
        judging.mean([e["after"]["rebuilt"] for e in erased]),
        judging.mean([e["before"]["rebuilt"] for e in erased]),
    )


def main_tables(
    pool: Pool, pure: Pure, best: dict, targets, tried_pure: dict, soups: dict
) -> tuple[dict, dict[str, str]]:
    """Shares and tables: every eraser with defaults and with its best setting of the choose set, on the test set.

    PURE's own row for each target.
    """
    rows = {DEFAULTS: lambda t: pure.edit(t)}
    if targets[0] in CHARACTERS:
        rows |= {label: lambda t, p=p: pure.edit(t, (p, {}, {})) for label, p in ASKED_SHORT.items()}
    if best["PURE"] != "defaults":
        rows[f"PURE, best tried ({best['PURE']})"] = lambda t: pure.edit(t, tried_pure[best["PURE"]])
    for name, (make, tried) in {PAPERS_RULE: (pure.edit, PAPER_TRIED), **PEERS}.items():
        first = next(iter(tried))
        rows[f"{name}, default ({first})"] = lambda t, make=make, v=tried[first]: make(t, v)
        if best[name] != first:
            rows[f"{name}, best tried ({best[name]})"] = lambda t, make=make, v=tried[best[name]]: make(t, v)
    seen = run_all(pool, rows, targets, "test", lambda label: FULL if label == DEFAULTS else PART, soups)
    first = seen[DEFAULTS]
    unedited = judging.shares(judging.distinct([e for part in first for e in part]), "before")
    scored = {
        UNEDITED: [{g: share for g, share in unedited.items() if not g.startswith("sharing")}],
        **{label: [judging.shares(s) for s in part] for label, part in seen.items()},
    }
    groups = [
        "named",
        "name_free",
        "soup",
        "others",
        "sharing 1",
        "sharing 2",
        "sharing 3",
        "styles",
        "characters",
        "shapes",
        "background",
        "style",
    ]
    groups = [g for g in groups if any(g in s for s in scored[DEFAULTS])]
    summary = [tables.summary_row(label, part, groups) for label, part in scored.items()]
    drift = [[label, *distances(part)] for label, part in seen.items()]
    kept = [g for g in ("others", "styles", "characters", "shapes") if g in groups]
    paired = [
        [
            label,
            *(
                "{:+.1f} [{:+.1f}, {:+.1f}]".format(
                    *(100 * v for v in judging.difference([e for p in part for e in p], g))
                )
                for g in kept
            ),
        ]
        for label, part in seen.items()
    ]
    own = [
        [t, *(s.get(g, "-") for g in groups), judging.worst_other(s), judging.harmonic(s)]
        for t, s in zip(targets, scored[DEFAULTS], strict=True)
    ]
    what = "characters" if targets[0] in CHARACTERS else "styles"
    return scored, {
        "short": tables.short(scored, tables.SHORT[what]),
        "summary": tables.markdown(tables.heading("", groups, "worst other: mean, lowest", "harmonic mean"), summary),
        "each": tables.markdown(tables.heading("erased", groups, "worst other", "harmonic mean"), own),
        "paired": tables.markdown(tables.heading("", kept), paired),
        "drift": tables.markdown(
            ["", "retained pictures moved by", "redrawing error of erased prompts", "the same, unedited"], drift
        ),
    }


def cost(pure: Pure, best: dict) -> str:
    """Seconds from nothing to the edited weights, for one character.

    PURE in the host at SD 1's width, peers on the narrow U-Net.
    """

    def seconds(function) -> float:
        started = time.monotonic()
        function()
        return time.monotonic() - started

    with torch.inference_mode():
        eraser, plan = pure.nodes.Eraser((pure.eraser().model, pure.eraser().clip)), pure.nodes.character_plan("miplo")
        captures = seconds(lambda: (eraser.merged(plan.forget, "forget"), eraser.merged(plan.retain, "retain")))
        ordinary = seconds(eraser.ordinary)
        rows = [
            ["PURE: captures", captures],
            ["PURE: ordinary pictures, once for a MODEL", ordinary],
            ["PURE: basis and apply", seconds(lambda: eraser.erase(plan))],
        ]
        rows += [
            [f"{name}: edit", seconds(lambda make=make, v=tried[best[name]]: make("miplo", v))]
            for name, (make, tried) in PEERS.items()
            if name != "negative prompt"
        ]
    return tables.markdown(["", "seconds"], rows)


def white_box(pool: Pool, pure: Pure, best: dict) -> str:
    """With the edited model's weights in hand: relearned embeddings of the name, and concept inversion."""
    rows = {UNEDITED: lambda t: (None, ""), DEFAULTS: lambda t: pure.edit(t)}
    rows |= {
        f"{name}, best tried": lambda t, make=make, v=tried[best[name]]: make(t, v)
        for name, (make, tried) in {PAPERS_RULE: (pure.edit, PAPER_TRIED), **PEERS}.items()
        if name not in NOT_ATTACKED
    }
    waiting = {}
    for label, make in rows.items():
        for lane, target in enumerate(CHARACTERS):
            weights = make(target)[0]
            tries = (attacks.relearned_hits, attacks.inversion_hits)  # far from equally long, so in one lane
            waiting[label, target] = [pool.call(attack, weights, target, lane=lane) for attack in tries]
    got = {key: [relearned.result(), *inverted.result()] for key, (relearned, inverted) in waiting.items()}

    def share(label: str, attack: int) -> str:
        return "{:.3f} [{:.3f}, {:.3f}]".format(*judging.resampled([got[label, t][attack] for t in CHARACTERS]))

    heading = ["", "relearned embedding", *(f"inversion, {steps} steps" for steps in attacks.BUDGETS)]
    return tables.markdown(heading, [[label, *(share(label, i) for i in range(len(heading) - 1))] for label in rows])


def ablations(pool: Pool, pure: Pure) -> str:
    """One setting changed at a time, on the choose set."""
    contrast, energy = ({}, {}), PAPER_TRIED[PAPER]

    def paper(plan=None, build=None, apply=None):
        return (
            {**energy[0], **(plan or {})},
            {**energy[1], **(build or {})},
            {**energy[2], **(apply or {})},
        )

    rows: dict[str, tuple] = {"the nodes' defaults": (({}, {}, {}), {})}
    rows |= {f"keep_weight {w:g}": (({}, {"keep_weight": w}, {}), {}) for w in (0.2, 0.5, 1.0, 5.0, 20.0)}
    rows |= {f"sent to the mean of keep, weight {w}": (({}, {**FORMER, "keep_weight": w}, {}), {}) for w in (0.2, 2)}
    rows["sent to 'a picture' in six phrasings"] = (({}, {"instead": "a picture"}, {}), {})
    rows |= {f"ordinary share {s}": (({}, {"ordinary_share": s}, {}), {}) for s in (0.25, 0.75)}
    rows |= {f"{n} ordinary captions": (({}, {"ordinary": {"count": n}}, {}), {}) for n in (32, 64)}
    rows["ordinary captions of shapes alone"] = (({}, {"ordinary": {"creatures": 0.0}}, {}), {})
    rows["ordinary captions in no style"] = (({}, {"ordinary": {"styled": 0.0}}, {}), {})
    rows["other ordinary captions"] = (({}, {"ordinary": {"seed": 1}}, {}), {})
    rows["no ordinary pictures, weight 3"] = (({}, ALONE, {}), {})
    rows |= {f"at most {k} directions": (({}, {"max_rank": k}, {}), {}) for k in (1, 4)}
    rows |= {f"weights: {w}": (({}, {}, {"weights": w}), {}) for w in ("keys and values", "output")}
    rows["layers: up"] = (({}, {}, {"layers": "up"}), {})
    rows["strength .5"] = (({}, {}, {"strength": 0.5}), {})
    rows["whole layers"] = (({}, {"structure": "whole layer"}, {}), {})
    rows["no centring"] = (({}, {"centering": "none"}, {}), {})
    rows |= {f"{n} descriptions beside the name": (({"descriptions": n}, {}, {}), {}) for n in (0, 1, 2)}
    rows |= {f"{n} retained neighbours": (({"neighbours": n}, {}, {}), {}) for n in (0, 2, 4)}
    rows["retained neighbours described too"] = (({"described": 1}, {}, {}), {})
    rows["one phrasing instead of six"] = (({"templates": "a picture of {}"}, {}, {}), {})
    rows["2 seeds"] = ((*contrast, {}), {"seeds": 2})
    rows["4 steps, all recorded"] = ((*contrast, {}), {"steps": 4, "recorded_steps": 4})
    rows["first 5 of 10 steps"] = ((*contrast, {}), {"recorded_steps": 5})
    rows["a row per position, not their mean"] = (({}, {"positions": True}, {}), {})
    rows["paper's rule: energies .9999/.5"] = (paper(), {})
    rows["paper's rule: values"] = (paper(None, None, {"weights": "values"}), {})
    rows["paper's rule: centring"] = (paper(None, {"centering": "mean of keep"}), {})
    rows["paper's rule: per head"] = (paper(None, {"structure": "per head"}), {})
    rows["paper's rule: name alone"] = (paper({"descriptions": 0}), {})
    targets = ("zorbo", "miplo", "quistle")  # one with a colour of its own, two without
    seen = {}
    for label, (setting, capture) in rows.items():
        seen |= run_all(
            pool,
            {label: lambda t, s=setting, c=capture: pure.edit(t, s, **c)},
            targets,
            "choose",
            lambda _: {"each": 14, "others": 2, "sharing": 4, "shapes": 8},
            {},
        )
    out, sharing, groups = [], [f"sharing {k}" for k in "123"], ["named", "name_free", "others", "shapes", "background"]
    for label, part in seen.items():
        scored = [judging.shares(s) for s in part]
        shared = sum((s[g] for s in scored for g in sharing), judging.Share(0, 0))
        out.append(
            [
                label,
                *(tables.pooled(scored, g).value for g in groups),
                shared.value,
                judging.mean([judging.harmonic(s) for s in scored]),
            ]
        )
    return tables.markdown(tables.counted("changed", scored, groups, f"sharing (n {shared.n})", "harmonic mean"), out)


def joint(pool: Pool, pure: Pure) -> str:
    """2 to 6 characters by one joint basis, and one after the other with a new capture on the edited MODEL."""
    order, out = list(CHARACTERS)[2:], []
    step, waiting = None, []
    for count in range(1, len(order) + 1):
        names = order[:count]
        with torch.inference_mode():
            eraser = pure.nodes.Eraser((step or pure.eraser().model, pure.eraser().clip))
            rest = [n for n in CHARACTERS if n not in names]
            plan = pure.nodes.character_plan(*names)
            last = pure.nodes.Plan(pure.nodes.character_plan(names[-1]).forget, plan.retain)
            step = eraser.erase(last)
            if count < 2:
                continue
            for label, model in (("joint", pure.eraser().erase(plan)), ("sequential", step)):
                sets = studio.prompts()["choose"]
                entries = [
                    {**e, "group": kind, "wanted": n}
                    for n in names
                    for kind in ("named", "name_free")
                    for e in sets[kind][n][:12]
                ]
                entries += [
                    {**e, "group": f"others {kind}", "wanted": n}
                    for n in rest
                    for kind in ("named", "name_free")
                    for e in sets[kind][n][:12]
                ]
                waiting.append((count, label, pool.see(pure.nodes.narrow(model), entries)))
    for count, label, future in waiting:
        s = judging.shares(future.result())
        out.append([f"{count}, {label}", *(s[g] for g in ("named", "name_free", "others", "background"))])
    return tables.markdown(["erased", "named", "name-free", "others", "background"], out)


def leakage(pool: Pool, pure: Pure) -> str:
    """PURE_MeasureLeakage against the judge: settings from nothing to everything, on the choose set."""
    settings = {
        "strength 0.25": ({}, {}, {"strength": 0.25}),
        "strength 0.5": ({}, {}, {"strength": 0.5}),
        "strength 0.75": ({}, {}, {"strength": 0.75}),
        "defaults": ({}, {}, {}),
        "1 direction": ({}, {"max_rank": 1}, {}),
        "paper's rule, .95/.95, once": next(iter(PAPER_TRIED.values())),
        "paper's rule, best tried": PAPER_TRIED[PAPER],
    }
    out, pairs = [], []
    for label, (plan, build, apply) in settings.items():
        measured, waiting = [], []
        for target in ("zorbo", "miplo", "tarnik", "quistle"):
            with torch.inference_mode():
                model = pure.eraser().erase(pure.nodes.character_plan(target, **plan), apply, **build)
                measured.append(pure.eraser().measure(model, target))
                weights = pure.nodes.narrow(model)
            waiting.append(
                pool.see(weights, entries_of(target, "choose", {"each": 30, "others": 1, "sharing": 0, "shapes": 0}))
            )
        seen = [judging.shares(f.result()) for f in waiting]
        left = [(s["named"].value + s["name_free"].value) / 2 for s in seen]
        pairs += [(m["leakage"], v) for m, v in zip(measured, left, strict=True)]
        out.append(
            [
                label,
                judging.mean([m["leakage"] for m in measured]),
                judging.mean(left),
                judging.mean([m["movement"] for m in measured]),
                tables.pooled(seen, "others").value,
            ]
        )
    table = tables.markdown(["edit", "leakage", "seen by the judge", "moved", "others seen"], out)
    return (
        f"{table}\n\nRank correlation of leakage and what the judge sees, over {len(pairs)} edits: "
        f"{spearmanr(*zip(*pairs, strict=True)).statistic:.2f}."
    )


SECTIONS = ("main", "styles", "attacks", "ablations", "joint", "leakage")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    started, pool, pure = time.monotonic(), Pool(), Pure()
    from . import plots  # after the pack is loaded

    def keep(name: str, table: str) -> None:
        print(f"\n## {name} ({time.monotonic() - started:.0f} s)\n\n{table}", flush=True)
        if options.write:
            tables.fill({name: table})

    characters, styles = list(CHARACTERS), list(ARTISTS)
    if {"main", "attacks"} & set(options.only):
        best, table = choose(pool, pure, characters, PURE_TRIED)
        keep("tried on characters", table)
        if "main" in options.only:
            soups = dict(
                zip(
                    characters,
                    [f.result() for f in [pool.call(attacks.soups, t, "test", SOUP) for t in characters]],
                    strict=True,
                )
            )
            scored, written_tables = main_tables(pool, pure, best, characters, PURE_TRIED, soups)
            for name, table in written_tables.items():
                keep(f"characters: {name}", table)
            if options.write:
                plots.tradeoff(
                    {k: v for k, v in scored.items() if k != UNEDITED}, tables.DOCUMENTS / "evidence_tradeoff.png"
                )
                with torch.inference_mode():
                    plots.sheet({t: pure.edit(t)[0] for t in characters}, tables.DOCUMENTS / "evidence_pictures.png")
            keep("cost", cost(pure, best))
        if "attacks" in options.only:
            keep("concept inversion", white_box(pool, pure, best))
    if "styles" in options.only:
        best, table = choose(pool, pure, styles, PURE_STYLES_TRIED)
        keep("tried on styles", table)
        for name, table in main_tables(pool, pure, best, styles, PURE_STYLES_TRIED, {})[1].items():
            keep(f"styles: {name}", table)
    for name, section in (("ablations", ablations), ("joint", joint), ("leakage", leakage)):
        if name in options.only:
            keep(name, section(pool, pure))
    if set(options.only) == set(SECTIONS):
        keep("efficacy: time", f"All of it took {(time.monotonic() - started) / 60:.0f} minutes on {pool.lanes} cores.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
