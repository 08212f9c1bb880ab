"""The file format of a basis: round trip, refusals, mutated and hostile files."""

import json
import os
import random
import resource
import time
from pathlib import Path

import psutil
import pytest
import torch
from pure_pack.pure_core.basis import TENSORS
from pure_pack.pure_core.basis_file import load_basis, save_basis
from pure_pack.pure_core.build import build_basis
from pure_pack.pure_core.checked_file import MOST_HEADER
from pure_pack.pure_core.errors import PureError
from safetensors import safe_open
from torch.testing import assert_close

from captures import FORGET, INSTEAD, LAYERS, RETAIN, whole_layer
from hostile import bombs, mutate, rewrite

FIXTURES = Path(__file__).parent / "fixtures"


def basis(rule="energy", **settings):
    return build_basis(FORGET, RETAIN, whole_layer(rule, keep_energy=0.9, **settings))[0]


@pytest.mark.parametrize("structure", ["whole layer", "per head"])
@pytest.mark.parametrize("rule", ["energy", "contrast"])
def test_a_basis_is_read_back_as_it_was(tmp_path, rule, structure):
    saved = basis(rule, structure=structure)
    path, steps = save_basis(saved, tmp_path / "b_00001_.safetensors"), []
    read = load_basis(path, lambda: steps.append(1))
    assert path == tmp_path / "b_00001_.safetensors"
    assert len(steps) == len(saved.sites)
    assert (read.rule, read.structure, read.model, read.recipe) == (
        saved.rule,
        saved.structure,
        saved.model,
        saved.recipe,
    )
    assert read.shapes == saved.shapes
    for name, edit in saved.sites.items():
        assert all(torch.equal(getattr(read.sites[name], part), getattr(edit, part)) for part in TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_without_the_recipe_no_prompt_is_in_the_file(tmp_path):
    path = save_basis(basis(), tmp_path / "b.safetensors", embed_recipe=False)
    assert b"zorbo" not in path.read_bytes()
    read = load_basis(path)
    assert read.sites.keys() == basis().sites.keys()
    assert read.recipe is None
    assert read.model == basis().model  # another fine-tune can still be warned of
    assert b"zorbo" in save_basis(basis(), tmp_path / "c.safetensors").read_bytes()  # control


def layout(path):
    """What a file has: fields of a layer with their type and dimensions, and keys of its head."""
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["pure"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    return {(k.rpartition(".")[2], t.dtype, t.dim()) for k, t in tensors.items()}, set(head), tensors


@pytest.mark.parametrize("rule", ["energy", "contrast"])
def test_a_file_of_the_first_version_is_read_for_ever(rule):
    source = FIXTURES / f"basis_version_1_{rule}.safetensors"
    _, _, tensors = layout(source)
    read = load_basis(source)
    assert read.rule == rule
    assert read.sites
    assert read.recipe.forget.concepts
    assert read.recipe.settings.rule == rule
    for name, edit in read.sites.items():
        u, m = (tensors[f"{name}.{part}"].double() for part in ("u", "m"))
        assert read.shapes[name].width == len(u)
        assert_close(edit.u.double() @ edit.m.double().T, u @ m.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rule", ["energy", "contrast"])
def test_the_format_only_grows(tmp_path, rule):
    second_version = FIXTURES / f"basis_version_2_{rule}.safetensors"
    fields, head, tensors = layout(second_version)
    read = load_basis(second_version)
    assert all(torch.equal(edit.u, tensors[f"{name}.u"]) for name, edit in read.sites.items())
    path = save_basis(read, tmp_path / "now.safetensors")
    fields_now, head_now, _ = layout(path)
    assert fields <= fields_now
    assert head <= head_now
    rewrite(path, lambda t, h: (h.pop("structure"), t.pop(first(t, "values"))))  # control
    assert not head <= layout(path)[1]
    assert len(read.sites) > 0


def first(tensors, field):
    return next(k for k in tensors if k.endswith(f".{field}"))


def set_all(tensors, field, value):
    for key in tensors:
        if key.endswith(f".{field}"):
            tensors[key] = torch.full_like(tensors[key], value)


def swap(tensors, a, b):
    tensors[first(tensors, a)], tensors[first(tensors, b)] = tensors[first(tensors, b)], tensors[first(tensors, a)]


DAMAGED = [
    (lambda t, h: h.update(version=99), "version 99"),
    (lambda t, h: h.update(version=True), "version True"),
    (lambda t, h: h.update(format="other"), "format 'other'"),
    (lambda t, h: h.pop("sites"), "is not a PURE basis"),
    (lambda t, h: h.update(rule="other"), "is not a PURE basis"),
    (lambda t, h: h.update(structure="any text"), "is not a PURE basis"),
    (lambda t, h: h["sites"][LAYERS[0]].update(heads="4"), "is not a PURE basis"),
    (lambda t, h: h["sites"][LAYERS[0]].update(heads=2.5), "is not a PURE basis"),
    (lambda t, h: h["sites"][LAYERS[0]].update(heads=True), "is not a PURE basis"),
    (lambda t, h: h["sites"][LAYERS[0]].update(heads=float("inf")), "is not a PURE basis"),
    (lambda t, h: h["sites"][LAYERS[0]].update(heads=5), "heads do not fit"),
    (lambda t, h: h["sites"][LAYERS[0]].update(width=31), "shapes do not fit"),
    (lambda t, h: h["recipe"].update(forget=5), "is not a PURE basis"),
    (lambda t, h: h["recipe"].update(forget=None), "is not a PURE basis"),
    (lambda t, h: h["recipe"]["forget"].update(concepts=[5]), "is not a PURE basis"),
    (lambda t, h: h["recipe"]["settings"].update(keep_weight="much"), "is not a PURE basis"),
    (lambda t, h: h["recipe"].update(extra=[[], []]), "is not a PURE basis"),
    (lambda t, h: h["model"].update(family=["SD15"]), "is not a PURE basis"),
    (lambda t, h: t.pop(first(t, "u")), "does not hold the layers"),
    (lambda t, h: t[first(t, "m")].fill_(float("nan")), "not finite"),
    (lambda t, h: t.update({first(t, "u"): t[first(t, "u")].half()}), "float16"),
    (lambda t, h: t.update({first(t, "u"): t[first(t, "u")][:, :1].clone()}), "shapes do not fit"),
]


@pytest.mark.parametrize(("change", "words"), DAMAGED)
def test_a_damaged_basis_is_refused_in_one_sentence(tmp_path, change, words):
    path = save_basis(basis(), tmp_path / "b.safetensors")
    load_basis(path)  # control: whole before
    rewrite(path, change)
    with pytest.raises(PureError, match=words) as refused:
        load_basis(path)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("rule", "change", "words"),
    [
        ("energy", lambda t: t.update({first(t, "v_f"): t[first(t, "v_f")] * 1.001}), "not orthonormal"),
        ("energy", lambda t: t.update({first(t, "m"): t[first(t, "m")] * 1.5}), "does not follow from its bases"),
        ("energy", lambda t: swap(t, "u", "m"), "does not follow from its bases"),
        ("contrast", lambda t: t.update({first(t, "u"): t[first(t, "u")] * 1.5}), "does not follow from its ratios"),
        ("contrast", lambda t: t.update({first(t, "m"): t[first(t, "m")] * 1.5}), "unit columns"),
        ("contrast", lambda t: swap(t, "u", "m"), "unit columns"),
        ("contrast", lambda t: set_all(t, "values", 0.0), "not all positive"),
        ("contrast", lambda t: (set_all(t, "values", 0.0), set_all(t, "u", 1e20)), "not all positive"),
        ("contrast", lambda t: set_all(t, "values", -3.0), "not all positive"),
        ("contrast", lambda t: set_all(t, "u", 1e12), "larger than any erasure"),
    ],
)
def test_an_edit_that_no_build_gives_is_refused(tmp_path, rule, change, words):
    path = save_basis(basis(rule), tmp_path / "b.safetensors")
    rewrite(path, lambda t, h: change(t))
    with pytest.raises(PureError, match=words):
        load_basis(path)


def test_what_is_drawn_instead_is_read_back_and_checked(tmp_path):
    saved = build_basis(FORGET, RETAIN, whole_layer(), replacement=INSTEAD)[0]
    path = save_basis(saved, tmp_path / "b.safetensors")
    read = load_basis(path)
    assert read.recipe.replacement.concepts == ("a dog",)
    for name, edit in saved.sites.items():
        assert torch.equal(read.sites[name].left, edit.left)
        assert not torch.equal(edit.left, edit.u)
    assert not any(part == "refill" for part, *_ in layout(save_basis(basis(), tmp_path / "c.safetensors"))[0])
    for change, words in (
        (lambda t, h: set_all(t, "refill", 1e9), "larger than any row"),
        (lambda t, h: t.update({first(t, "refill"): t[first(t, "refill")][:, :1].clone()}), "does not fit"),
        (lambda t, h: set_all(t, "refill", float("nan")), "not finite"),
        (lambda t, h: h.update(structure="per head"), "mixes heads"),
    ):
        path = save_basis(saved, tmp_path / "d.safetensors")
        rewrite(path, change)
        with pytest.raises(PureError, match=words):
            load_basis(path)


def test_an_edit_per_head_that_mixes_heads_is_refused(tmp_path):
    path = save_basis(basis("contrast"), tmp_path / "b.safetensors")  # of whole layers
    rewrite(path, lambda t, h: h.update(structure="per head"))
    with pytest.raises(PureError, match="mixes heads"):
        load_basis(path)


def test_files_that_are_bombs_are_refused_in_words_at_once(tmp_path):
    process = psutil.Process()
    for path in bombs(tmp_path):
        before, began = process.memory_info().rss, time.process_time()
        with pytest.raises(PureError, match="is not a PURE basis") as refused:
            load_basis(path)
        assert len(str(refused.value)) < 300
        assert time.process_time() - began < 10
        assert process.memory_info().rss - before < 256 * 2**20, path.name
    assert (tmp_path / "94_MB_of_lists.safetensors").stat().st_size > 20 * MOST_HEADER


@pytest.mark.parametrize("kind", ["dangling", "loop", "fifo", "folder"])
def test_what_is_no_file_is_refused_in_words(tmp_path, kind):
    path = tmp_path / "b.safetensors"
    make = {
        "dangling": lambda: path.symlink_to(tmp_path / "nowhere"),
        "loop": lambda: path.symlink_to(path),
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }
    make[kind]()
    with pytest.raises(PureError, match=r"There is no file|is no file|is not a PURE basis"):
        load_basis(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x04}.", b"\xff" * 64, b"PK\x03\x04" + b"\0" * 40],
    ids=["empty", "pickle", "huge header", "zip"],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "b.safetensors").write_bytes(content)
    with pytest.raises(PureError, match="is not a PURE basis"):
        load_basis(tmp_path / "b.safetensors")
    with pytest.raises(PureError, match="no file"):
        load_basis(tmp_path / "missing.safetensors")


def test_2000_mutated_files_are_read_right_or_refused(tmp_path):
    """Never another error than ours, and never much more memory than the file is large."""
    whole, path, refused = tmp_path / "whole.safetensors", tmp_path / "b.safetensors", 0
    save_basis(basis(), whole)
    data, rng = whole.read_bytes(), random.Random(0)
    before, peaked = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(2000):
        path.write_bytes(mutate(data, rng))
        try:
            for layer in load_basis(path).sites.values():
                assert torch.isfinite(layer.u).all()
                assert layer.u.shape == layer.m.shape
        except PureError:
            refused += 1
    assert 1000 < refused < 2000  # some hit a name or a prompt, which may say anything
    assert psutil.Process().memory_info().rss - before < 64 * 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak - max(before, peaked) < 512 * 2**20  # never a mutated header's worth of memory, not even for a moment
