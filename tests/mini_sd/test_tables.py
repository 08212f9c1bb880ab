"""The readers' tables of the benchmarks."""

from benchmarks import tables
from benchmarks.judging import Share

PARTS = ("named", "name_free", "others", "shapes", "background", "style")


def shares(erased, kept, **more):
    return {part: Share(erased if part in PARTS[:2] else kept, 10) for part in PARTS} | more


def test_a_short_table_has_each_erasers_last_setting_and_a_dash_for_what_was_not_drawn():
    found = {
        tables.UNEDITED: [shares(10, 10)],
        tables.DEFAULTS: [shares(0, 10, **{"sharing 1": Share(9, 10)}), shares(1, 10, **{"sharing 1": Share(8, 10)})],
        "UCE, default (lam .5)": [shares(5, 9)],
        "UCE, best tried (lam 50)": [shares(4, 9)],
    }
    rows = tables.short(found, tables.SHORT["characters"]).splitlines()
    assert rows[0] == "|  | named | described | others | sharing one attribute | shapes | background | harmonic mean |"
    assert rows[2] == "| unedited | 100 % | 100 % | 100 % | - | 100 % | 100 % | - |"
    assert rows[3].startswith("| PURE, nodes' defaults | 5 % | 5 % | 100 % | 85 % | 100 % | 100 % | 0.9")
    assert rows[4].startswith("| UCE, best tried | 40 % | 40 % | 90 % | - | 90 % | 90 % | 0.")
    assert len(rows) == 5
