"""Charts show what they are given, the same each time."""

import time

import torch
from pure_pack.pure_core.build import build_basis
from pure_pack.pure_core.charts import BLUE, ORANGE, SIZE, basis_chart, leakage_chart
from pure_pack.pure_core.grid import comparison_grid
from pure_pack.pure_core.leakage import Measured, SiteLeakage

from captures import FORGET, RETAIN, whole_layer


def blue(picture):
    """Pixels in the colour of the first bar of a row."""
    return int(((picture[0] * 255).round() == torch.tensor(BLUE)).all(-1).sum())


def test_the_basis_chart_shows_the_basis_and_is_the_same_each_time():
    pictures = [
        basis_chart(build_basis(FORGET, RETAIN, s)[0])
        for s in (whole_layer("contrast"), whole_layer("contrast"), whole_layer("energy", 0.9999, 0.99))
    ]
    for picture in pictures:
        assert picture.shape == (1, SIZE[1], SIZE[0], 3)
        assert 0 <= picture.min() < 0.2
        assert picture.max() == 1
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])


def test_the_spectrum_of_the_contrast_rule_shows_ratios_the_weight_and_the_kept_rank():
    def shown(**changes):
        return basis_chart(build_basis(FORGET, RETAIN, whole_layer("contrast", **changes))[0])

    assert not torch.equal(shown(keep_weight=3.0), shown(keep_weight=3.5))
    orange = [int(((shown(keep_weight=w)[0] * 255).round() == torch.tensor(ORANGE)).all(-1).sum()) for w in (3.0, 0.0)]
    # the line at the weight, and none
    assert orange[0] > 300
    assert orange[1] == 0


def test_of_whole_layers_discs_show_where_the_edit_ends_and_of_heads_none():
    def ink(structure):
        """Dark pixels of the spectra, their title left out."""
        basis = build_basis(FORGET, RETAIN, whole_layer("contrast", keep_weight=0, structure=structure))[0]
        return int((basis_chart(basis)[0, 125:555, 115:1000].mean(-1) < 0.2).sum())

    assert ink("per head") == 0
    assert ink("whole layer") > 60


def test_the_leakage_charts_bars_grow_with_the_leakage_for_any_number_of_layers():
    for n in (1, 16, 70):
        sites = [f"input_blocks.{i}.1.transformer_blocks.0.attn2" for i in range(n)]
        areas = [
            blue(leakage_chart(Measured({name: SiteLeakage(v, 0.1) for name in sites}, {"zorbo": v}, {"zorbo": 1.0})))
            for v in (0.1, 0.5, 1.0)
        ]
        assert 4 < areas[1] / areas[0] < 6
        assert 1.8 < areas[2] / areas[1] < 2.2


def test_the_grid_holds_every_picture():
    before, after = (torch.full((3, 64, 64, 3), v) for v in (0.25, 0.75))
    grid = comparison_grid(
        before,
        after,
        ["one", "two words", "a prompt that is far too long for the width of one picture " * 3],
        columns=2,
    )
    for value in (0.25, 0.75):
        shown = ((grid - value).abs() < 0.01).all(-1).sum()
        assert 3 * 256 * 256 <= shown < 3.1 * 256 * 256
    assert comparison_grid(before[:1], after[:1], [""], columns=8).shape[2] < grid.shape[2]


def test_a_prompt_without_spaces_is_cut_at_once():
    """Comma-joined tags: 10,000 characters took more than 500 seconds."""
    before = torch.full((1, 64, 64, 3), 0.5)
    began = time.process_time()
    grids = [comparison_grid(before, before, ["masterpiece,best_quality," * n], columns=1) for n in (2, 400, 4000)]
    assert time.process_time() - began < 5
    assert grids[0].shape == grids[1].shape
    assert torch.equal(grids[1], grids[2])
    assert not torch.equal(grids[0], grids[1])  # control: the short one is shown whole
