"""The file format of a basis: round trip, refusals, mutated files, and files that are whole or not there."""

import errno
import json
import random
import resource
from pathlib import Path

import psutil
import pytest
import torch
from pure_pack.pure_core.build import Settings, build_basis
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.files import OF_THE_MODEL, TENSORS, atomic_path, load_basis, save_basis
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_build import FORGET, RETAIN


def basis(rule="energy"):
    return build_basis(FORGET, RETAIN, Settings(rule, retain_energy=0.9))[0]


@pytest.mark.parametrize("rule", ["energy", "contrast"])
def test_a_basis_is_read_back_as_it_was(tmp_path, rule):
    saved = basis(rule)
    save_basis(saved, tmp_path / "b.safetensors")
    read = load_basis(tmp_path / "b.safetensors")
    assert (read.rule, read.structure, read.settings, read.provenance) == (
        saved.rule,
        saved.structure,
        saved.settings,
        saved.provenance,
    )
    for name, layer in saved.layers.items():
        assert read.layers[name].heads == layer.heads
        assert all(torch.equal(getattr(read.layers[name], f), getattr(layer, f)) for f in TENSORS)
    assert [p.name for p in tmp_path.iterdir()] == ["b.safetensors"]


def test_without_the_recipe_no_prompt_is_in_the_file(tmp_path):
    save_basis(basis(), tmp_path / "b.safetensors", embed_recipe=False)
    assert b"zorbo" not in (tmp_path / "b.safetensors").read_bytes()
    read = load_basis(tmp_path / "b.safetensors")
    assert read.layers.keys() == basis().layers.keys() and read.provenance == {
        k: basis().provenance[k] for k in OF_THE_MODEL
    }  # another fine-tune can still be warned of
    save_basis(basis(), tmp_path / "c.safetensors")
    assert b"zorbo" in (tmp_path / "c.safetensors").read_bytes()  # control


def rewrite(path, change):
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        head = json.loads(file.metadata()["pure"])
    change(tensors, head)
    save_file(tensors, path, metadata={"pure": json.dumps(head)})


def layout(path):
    """What a file has: fields of a layer with their type and dimensions, and keys of its head."""
    with safe_open(path, framework="pt") as file:
        head, tensors = json.loads(file.metadata()["pure"]), {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118  (no dict)
    return {(k.rpartition(".")[2], t.dtype, t.dim()) for k, t in tensors.items()}, set(head), tensors


@pytest.mark.parametrize("rule", ["energy", "contrast"])
def test_a_file_of_the_first_version_is_read_for_ever_and_the_format_only_grows(tmp_path, rule):
    first_version = Path(__file__).parent / "fixtures" / f"basis_version_1_{rule}.safetensors"
    fields, head, tensors = layout(first_version)
    read = load_basis(first_version)
    assert read.rule == rule and all(
        torch.equal(layer.u, tensors[f"{name}.u"]) and torch.equal(layer.m, tensors[f"{name}.m"])
        for name, layer in read.layers.items()
    )
    save_basis(read, tmp_path / "now.safetensors")
    fields_now, head_now, _ = layout(tmp_path / "now.safetensors")
    assert fields <= fields_now and head <= head_now
    rewrite(tmp_path / "now.safetensors", lambda t, h: (h.pop("structure"), t.pop(first(t, "values"))))  # control
    _, head_less, _ = layout(tmp_path / "now.safetensors")
    assert not head <= head_less and len(read.layers) > 0


def first(tensors, field):
    return next(k for k in tensors if k.endswith(f".{field}"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, h: h.update(version=99), "version 99"),
        (lambda t, h: h.update(format="other"), "format 'other'"),
        (lambda t, h: h.pop("heads"), "is not a PURE basis"),
        (lambda t, h: t.pop(first(t, "u")), "does not hold the layers"),
        (lambda t, h: t.update({first(t, "v_f"): t[first(t, "v_f")] * 1.001}), "not orthonormal"),
        (lambda t, h: t[first(t, "m")].fill_(float("nan")), "not finite"),
        (lambda t, h: t.update({first(t, "u"): t[first(t, "u")].half()}), "float16"),
        (lambda t, h: t.update({first(t, "u"): t[first(t, "u")][:, :1].clone()}), "shapes do not fit"),
    ],
)
def test_a_damaged_basis_is_refused_in_one_sentence(tmp_path, change, words):
    path = tmp_path / "b.safetensors"
    save_basis(basis(), path)
    load_basis(path)  # control: whole before
    rewrite(path, change)
    with pytest.raises(PureError, match=words):
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


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "x.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as part:
        part.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
    with atomic_path(target) as part:
        part.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" and list(tmp_path.iterdir()) == [target]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, cut, repeated or put in, mostly in the header, where the structure is."""
    out, kind = bytearray(data), rng.randrange(4)
    at = rng.randrange(min(len(out), 4000) if rng.random() < 0.8 else len(out))
    if kind == 0:
        for _ in range(rng.randrange(1, 8)):
            out[min(at + rng.randrange(40), len(out) - 1)] = rng.randrange(256)
    elif kind == 1:
        del out[at : at + rng.randrange(1, 4000)]
    elif kind == 2:
        out[at:at] = out[at : at + rng.randrange(1, 200)]
    else:
        out[at:at] = rng.choice((b"9" * 12, b"[[[[" * 5000, b"\x00", b'"', b"-1", b"1e999", b'"__reduce__":'))
    return bytes(out)


def test_2000_mutated_files_are_read_right_or_refused(tmp_path):
    """Never another error than ours, and never much more memory than the file is large."""
    whole, path, refused = tmp_path / "whole.safetensors", tmp_path / "b.safetensors", 0
    save_basis(basis(), whole)
    data, rng = whole.read_bytes(), random.Random(0)
    before, peaked = psutil.Process().memory_info().rss, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for _ in range(2000):
        path.write_bytes(mutate(data, rng))
        try:
            for layer in load_basis(path).layers.values():
                assert torch.isfinite(layer.u).all() and layer.u.shape == layer.m.shape
        except PureError:
            refused += 1
    assert 1000 < refused < 2000  # some hit a name or a prompt, which may say anything
    assert psutil.Process().memory_info().rss - before < 64 * 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert peak - max(before, peaked) < 512 * 2**20  # never a mutated header's worth of memory, not even for a moment


def test_an_edit_that_does_not_follow_from_its_bases_is_refused(tmp_path):
    for rule in ("energy", "contrast"):
        path = tmp_path / f"{rule}.safetensors"
        save_basis(basis(rule), path)
        rewrite(path, lambda t, h: t.update({first(t, "m"): t[first(t, "m")] * 1.5}))
        with pytest.raises(PureError, match="does not follow from its bases"):
            load_basis(path)


def test_a_disk_that_does_not_take_the_file_is_a_sentence(tmp_path):
    with pytest.raises(PureError, match="could not be written"), atomic_path(tmp_path / "x.bin") as part:
        part.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []
