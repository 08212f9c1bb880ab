"""Results -> markdown, and tables into the places that a document keeps for them."""

from __future__ import annotations

import re
from pathlib import Path

from .judging import Share, harmonic, mean, worst_other

Shares = dict[str, Share]


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


def fill(document: Path, tables: dict[str, str]) -> None:
    """Puts each table between its `<!-- name -->` and `<!-- end -->` in a document.

    KeyError where the document has no such place.
    """
    text = document.read_text(encoding="utf-8")
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not place.search(text):
            raise KeyError(f"{document.name} has no place <!-- {name} --> for this table.")
        text = place.sub(lambda m, table=table: f"{m[1]}\n{table}\n\n{m[2]}", text)
    document.write_text(text, encoding="utf-8")


def spearman(x: list[float], y: list[float]) -> float:
    """Rank correlation; ties get their mean rank."""

    def ranks(values):
        return [mean([i for i, v in enumerate(sorted(values)) if v == value]) for value in values]

    a, b = ranks(x), ranks(y)
    ma, mb = mean(a), mean(b)
    cov = sum((p - ma) * (q - mb) for p, q in zip(a, b, strict=True))
    return cov / (sum((p - ma) ** 2 for p in a) * sum((q - mb) ** 2 for q in b)) ** 0.5
