"""Are the defaults those of one world? PURE's settings on three miniature worlds; the tables of docs/tables/worlds.md.

    python -m benchmarks.worlds [--only choose test] [--write]       (in tools/)

Worlds 2 and 3 have other characters, and a U-Net and text encoder tuned to them. Settings are compared on `choose`
prompts of all characters, and each world also gets the one that is best on the two others (leave one out); on `test`
prompts are the defaults, those before the concept was sent anywhere, and the name alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

from . import judging, tables
from .efficacy import Pool, run_all
from .methods import ALONE, FORMER, Pure
from mini_sd.world import CHARACTERS, WORLD

Found = dict[str, list[dict[str, judging.Share]]]  # label -> per character the share of each group

WORLDS = (1, 2, 3)
DEFAULTS, BEFORE, FIRST = (
    "the nodes' defaults",
    "sent to the mean of keep, weight .2",
    "no ordinary pictures, weight 3, whole layers",
)
CHOSEN_FROM = {  # label: (plan, build, apply)
    FIRST: ({}, {**ALONE, "structure": "whole layer"}, {}),
    BEFORE: ({}, FORMER, {}),
    **{f"weight {w:g}": ({}, {"keep_weight": w}, {}) for w in (0.5, 1.0, 2.0, 3.0, 5.0)},
    "share .25": ({}, {"ordinary_share": 0.25}, {}),
    DEFAULTS: ({}, {}, {}),
}
TESTED = {
    BEFORE: CHOSEN_FROM[BEFORE],
    DEFAULTS: CHOSEN_FROM[DEFAULTS],
    f"{DEFAULTS}, name alone": ({"descriptions": 0}, {}, {}),
}
SPLITS = {
    "choose": (CHOSEN_FROM, {"each": 8, "others": 1, "sharing": 6, "shapes": 9}),
    "test": (TESTED, {"each": 32, "others": 3, "sharing": 8, "shapes": 24}),
}
GROUPS = ["named", "name_free", "others", "sharing 1", "sharing 2", "shapes", "background"]


def judged(split: str) -> dict[str, list[dict[str, tuple[int, int]]]]:
    """label -> per character the hits and pictures of each group, in the world of this process."""
    pool, pure = Pool(), Pure()
    settings, size = SPLITS[split]
    rows = {label: (lambda t, s=setting: pure.edit(t, s)) for label, setting in settings.items()}
    seen = run_all(pool, rows, list(CHARACTERS), split, lambda _: size, {})
    return {
        label: [{g: (s.hits, s.n) for g, s in judging.shares(part).items()} for part in parts]
        for label, parts in seen.items()
    }


def in_world(number: int, split: str) -> Found:
    """The same from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.worlds", "--child", split]
    environment = {**os.environ, "MINI_SD_WORLD": str(number)}
    out = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = json.loads(out.splitlines()[-1])
    return {
        label: [{g: judging.Share(*share) for g, share in part.items()} for part in parts]
        for label, parts in found.items()
    }


def table(found: dict[int, Found], choosing: bool) -> str:
    """Of each world and setting the shares and their harmonic mean; choosing: and what leaving it out would choose."""
    value = {
        world: {label: judging.mean([judging.harmonic(s) for s in parts]) for label, parts in part.items()}
        for world, part in found.items()
    }
    rows: list[list] = []
    for world, part in found.items():
        elsewhere = {label: judging.mean([value[w][label] for w in WORLDS if w != world]) for label in part}
        best = max(elsewhere, key=lambda label: elsewhere[label])
        for label, parts in part.items():
            mark = " (best on the two others)" if choosing and label == best else ""
            shown = (tables.pooled(parts, g).value for g in GROUPS)
            worst = min(judging.worst_other(s).value for s in parts)
            rows.append([world, label + mark, *shown, worst, value[world][label]])
    first = next(iter(found[1].values()))
    return tables.markdown(["world", *tables.counted("setting", first, GROUPS, "worst pair", "harmonic mean")], rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--child", choices=SPLITS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(judged(options.child)))
        return 0
    if WORLD != 1:
        raise SystemExit("Run it without MINI_SD_WORLD: it goes through all worlds itself.")
    for split in options.only:
        text = table({world: in_world(world, split) for world in WORLDS}, split == "choose")
        print(f"## {split}\n\n{text}", flush=True)
        if options.write:
            tables.fill({f"worlds: {split}": text})
    return 0


if __name__ == "__main__":
    sys.exit(main())
