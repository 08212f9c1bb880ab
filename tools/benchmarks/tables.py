"""Results -> markdown, and tables into the places that a document keeps for them."""

from __future__ import annotations

import re
from pathlib import Path

from .judging import Share, harmonic, mean, worst_other

Shares = dict[str, Share]
DOCUMENTS = Path(__file__).resolve().parents[2] / "docs"
UNEDITED, DEFAULTS = "unedited", "PURE, nodes' defaults"
SHORT = {  # groups of pictures in the readers' tables -> their headings
    "characters": {
        "named": "named",
        "name_free": "described",
        "others": "others",
        "sharing 1": "sharing one attribute",
        "shapes": "shapes",
        "background": "background",
    },
    "styles": {
        "named": "named",
        "name_free": "described",
        "others": "other styles",
        "characters": "characters",
        "shapes": "shapes",
        "background": "background",
    },
}


def markdown(header: list[str], rows: list[list]) -> str:
    """A table; floats get three digits."""

    def cell(v):
        return f"{v:.3f}" if isinstance(v, float) else str(v)

    return "\n".join(
        [
            "| " + " | ".join(header) + " |",
            "|" + "---|" * len(header),
            *("| " + " | ".join(map(cell, row)) + " |" for row in rows),
        ]
    )


def pooled(results: list[Shares], group: str) -> Share | str:
    """One group's pictures of all targets together; a dash where it was not drawn."""
    parts = [r[group] for r in results if group in r]
    return sum(parts[1:], parts[0]) if parts else "-"


def summary_row(label: str, results: list[Shares], groups: list[str]) -> list:
    """A method over all targets: pooled shares, lowest other concept (mean over targets, lowest of all), mean harmonic
    mean."""
    worst = [worst_other(r).value for r in results]
    return [
        label,
        *(pooled(results, g) for g in groups),
        f"{mean(worst):.3f}, {min(worst):.3f}",
        mean([harmonic(r) for r in results]),
    ]


def heading(first: str, groups: list[str], *rest: str) -> list[str]:
    return [first, *(g.replace("_", "-") for g in groups), *rest]


def counted(first: str, results: list[Shares], groups: list[str], *rest: str) -> list[str]:
    """The same with the number of pictures, for tables in which each row has as many."""
    return [first, *(f"{g.replace('_', '-')} (n {pooled(results, g).n})" for g in groups), *rest]


def short(scored: dict[str, list[Shares]], groups: dict[str, str]) -> str:
    """The table for readers: the unedited model, PURE's first row, and of each eraser its best setting; in per cent.

    groups: a group of pictures -> its heading.
    """
    best = {label.split(",")[0]: label for label in scored if label not in (UNEDITED, DEFAULTS)}  # the last is the best
    shown = {label.split(" (")[0]: scored[label] for label in scored if label in (UNEDITED, DEFAULTS, *best.values())}
    return in_percent(shown, groups)


def in_percent(results: dict[str, list[Shares]], groups: dict[str, str]) -> str:
    """A row for each label, with the mean of the harmonic means."""
    rows = [
        [
            label,
            *("-" if isinstance(share := pooled(part, g), str) else f"{100 * share.value:.0f} %" for g in groups),
            "-" if label.endswith(UNEDITED) else f"{mean([harmonic(share) for share in part]):.2f}",
        ]
        for label, part in results.items()
    ]
    return markdown(["", *groups.values(), "harmonic mean"], rows)


def read(name: str, folder: Path = DOCUMENTS) -> str:
    """The table that stands between `<!-- name -->` and `<!-- end -->`; empty where there is none."""
    place = re.compile(rf"<!-- {re.escape(name)} -->\n(.*?)<!-- end -->", re.DOTALL)
    found = [m for p in folder.rglob("*.md") for m in place.findall(p.read_text(encoding="utf-8"))]
    return found[0].strip() if found else ""


def fill(tables: dict[str, str], folder: Path = DOCUMENTS) -> None:
    """Puts each table between its `<!-- name -->` and `<!-- end -->`, in whichever document of the folder has them.

    KeyError where not exactly one document has such a place.
    """
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        found = [p for p in sorted(folder.rglob("*.md")) if place.search(p.read_text(encoding="utf-8"))]
        if len(found) != 1:
            raise KeyError(f"{len(found)} documents have a place <!-- {name} --> for this table; it has to be one.")
        text = place.sub(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", found[0].read_text(encoding="utf-8"))
        found[0].write_text(text, encoding="utf-8")
