"""The file format of a capture: exact round trip, merging over many files, refusals, mutated and hostile files."""

import json
import random
import time

import psutil
import pytest
import torch
from pure_pack.pure_core.activations import merge_activations
from pure_pack.pure_core.activations_file import load_activations, save_activations
from pure_pack.pure_core.build import build_basis, build_block
from pure_pack.pure_core.errors import PureError
from torch.testing import assert_close

from captures import FORGET, LAYERS, RETAIN, captured, rows, whole_layer
from hostile import bombs, mutate, rewrite


@pytest.mark.parametrize("capture", [FORGET, RETAIN], ids=["forget", "retain"])
def test_a_capture_is_read_back_as_it_was(tmp_path, capture):
    steps = []
    path = save_activations(capture, tmp_path / "a_00001_.safetensors")
    read = load_activations(path, lambda: steps.append(1))
    assert len(steps) == len(LAYERS)
    for part in ("role", "rows", "shapes", "anchors", "settings", "model"):
        assert getattr(read, part) == getattr(capture, part)
    for name, moments in capture.moments.items():
        assert read.moments[name].count == moments.count
        assert torch.equal(read.moments[name].ones, moments.ones)
        assert torch.equal(read.moments[name].factor, moments.factor)
        assert torch.equal(read.sums[name], capture.sums[name])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_basis_of_ten_files_in_any_order_is_that_of_one_capture(tmp_path):
    """1,000 rows, split over ten machines."""
    blocks = [rows(True, seed, 1000) for seed in (1, 2)]
    names = [f"concept {i}" for i in range(10)]
    whole = captured("forget", names, blocks)
    paths = [
        save_activations(captured("forget", [name], [b[100 * i : 100 * (i + 1)] for b in blocks]), tmp_path / f"{i}.x")
        for i, name in enumerate(names)
    ]
    random.Random(3).shuffle(paths)
    merged = load_activations(paths[0])
    for path in paths[1:]:
        merged = merge_activations(merged, load_activations(path))
    assert merged.count == whole.count == 1000
    assert set(merged.anchors.concepts) == set(names)
    for rule in ("contrast", "energy"):
        for name in LAYERS:
            parts = [build_block(c.moments[name], RETAIN.moments[name], whole_layer(rule)) for c in (whole, merged)]
            one, many = (edit.u @ edit.m.T for edit in parts)
            assert_close(many, one, rtol=0, atol=1e-10 * float(one.abs().max()))


def test_without_the_recipe_no_word_is_in_the_file_and_a_basis_still_is(tmp_path):
    forget, retain = (
        save_activations(c, tmp_path / f"{c.role}.safetensors", embed_recipe=False) for c in (FORGET, RETAIN)
    )
    assert b"zorbo" not in forget.read_bytes()
    assert b"miplo" not in retain.read_bytes()
    assert b"zorbo" in save_activations(FORGET, tmp_path / "c.safetensors").read_bytes()  # control
    named, unnamed = (
        build_basis(f, r, whole_layer())[0]
        for f, r in ((FORGET, RETAIN), (load_activations(forget), load_activations(retain)))
    )
    for name in LAYERS:
        assert torch.equal(named.sites[name].u, unnamed.sites[name].u)


def first(tensors, part):
    return next(k for k in tensors if k.endswith(f".{part}"))


DAMAGED = [
    (lambda t, h: h.update(version=2), "version 2"),
    (lambda t, h: h.update(format="pure-basis"), "is for PURE Load Basis"),
    (lambda t, h: h.update(role="both"), "is not a file of PURE activations"),
    (lambda t, h: h.update(rows=[]), "is not a file of PURE activations"),
    (lambda t, h: h.update(rows=[0]), "is not a file of PURE activations"),
    (lambda t, h: h.update(rows=[-60]), "is not a file of PURE activations"),
    (lambda t, h: h.update(rows=[60, 60]), "is not a file of PURE activations"),
    (lambda t, h: h.update(rows=[61]), "number of rows"),
    (lambda t, h: h["sites"][LAYERS[0]].update(width=31), "is not a file of PURE activations"),
    (lambda t, h: h["sites"][LAYERS[0]].update(heads=5), "is not a file of PURE activations"),
    (lambda t, h: h["settings"].update(steps="ten"), "is not a file of PURE activations"),
    (lambda t, h: h["anchors"].update(concepts="zorbo"), "is not a file of PURE activations"),
    (lambda t, h: t.pop(first(t, "sums")), "does not hold the layers"),
    (lambda t, h: t[first(t, "factor")].fill_(float("nan")), "not finite"),
    (lambda t, h: t[first(t, "factor")].mul_(2), "sums are not"),
    (lambda t, h: t[first(t, "factor")][-1].mul_(2), "numbers are not"),
    (lambda t, h: h.update(content="0"), "numbers are not"),
    (lambda t, h: t[first(t, "sums")].mul_(2), "sums are not"),
    (lambda t, h: t.update({first(t, "factor"): t[first(t, "factor")].half()}), "not float32 or float64"),
    (lambda t, h: t.update({first(t, "ones"): torch.zeros(1000, dtype=torch.float64)}), "is not a file of PURE"),
    (lambda t, h: t.update({first(t, "sums"): torch.zeros(5, 32, dtype=torch.float64)}), "is not a file of PURE"),
]


@pytest.mark.parametrize(("change", "words"), DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path, change, words):
    path = save_activations(FORGET, tmp_path / "a.safetensors")
    load_activations(path)  # control: whole before
    rewrite(path, change)
    with pytest.raises(PureError, match=words) as refused:
        load_activations(path)
    assert len(str(refused.value)) < 300


def test_files_that_are_bombs_are_refused_in_words_at_once(tmp_path):
    process = psutil.Process()
    for path in bombs(tmp_path):
        before, began = process.memory_info().rss, time.process_time()
        with pytest.raises(PureError):
            load_activations(path)
        assert time.process_time() - began < 10
        assert process.memory_info().rss - before < 256 * 2**20, path.name
    sparse = tmp_path / "sparse.safetensors"  # a header that is right, and nothing but holes after it
    shape = [4_000_000, 65_536]
    header = json.dumps({"a": {"dtype": "F64", "shape": shape, "data_offsets": [0, 8 * shape[0] * shape[1]]}}).encode()
    with open(sparse, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 8 * shape[0] * shape[1])
    with pytest.raises(PureError, match="larger than"):
        load_activations(sparse)


def test_1000_mutated_files_are_read_right_or_refused(tmp_path):
    whole, path, refused = tmp_path / "whole.safetensors", tmp_path / "a.safetensors", 0
    save_activations(FORGET, whole)
    data, rng = whole.read_bytes(), random.Random(0)
    for _ in range(1000):
        path.write_bytes(mutate(data, rng))
        try:
            read = load_activations(path)
        except PureError as error:
            refused += 1
            assert len(str(error)) < 500
        else:
            assert read.shapes.keys() == FORGET.shapes.keys()
            assert read.count == FORGET.count
    assert refused > 950
