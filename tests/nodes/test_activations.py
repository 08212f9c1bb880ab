"""Captures that travel: saved, loaded, merged, and what is built of them."""

import itertools
import shutil

import folder_paths
import pytest
import torch
from pure_pack.nodes.activations import LoadActivations, MergeActivations, SaveActivations
from pure_pack.nodes.host import paths
from pure_pack.pure_core.errors import PureError
from torch.testing import assert_close

from run_nodes import build, capture, output_in, prompts, report, run

CONCEPTS = ("zorbo", "dorrit", "pelluna", "tarnik", "quistle")


@pytest.fixture
def output(tmp_path):
    with output_in(tmp_path) as folder:
        yield folder


def saved_and_loaded(activations, output, **inputs):
    path = run(SaveActivations, activations=activations, filename_prefix="pure/part", **inputs)[0]
    name = path.removeprefix(f"{output}/pure/")
    assert name in paths.saved_files()
    return run(LoadActivations, name=name)[0]


def test_a_basis_from_several_files_is_that_of_one_capture(mini, output):
    """One prompt list, captured whole and split over five files, in any order; seeds and seed included."""
    settings = {"seeds": 2, "seed": 9}
    forget = capture(mini, prompts("miplo"), **settings)
    whole = capture(mini, prompts("\n".join(CONCEPTS), "retain"), **settings)
    parts = [
        saved_and_loaded(
            capture(mini, prompts(concept, "retain", keep_empty_prompt=concept == CONCEPTS[0]), **settings), output
        )
        for concept in CONCEPTS
    ]
    for order in itertools.islice(itertools.permutations(parts), 0, 120, 50):
        names = [f"activations_{letter}" for letter in "abcde"]
        merged = run(MergeActivations, **dict(zip(names, order, strict=True)))[0]
        assert merged.count == whole.count
        for name, moments in whole.moments.items():
            together = merged.moments[name].second_moment()
            # float32 rows of other batches differ by rounding; moments add nothing to that
            assert_close(together, moments.second_moment(), rtol=0, atol=1e-5 * float(together.abs().max()))
        one, many = build(forget, whole), build(forget, merged)
        for name, edit in one.sites.items():
            a, b = (e.u.double() @ e.m.double().T for e in (edit, many.sites[name]))
            assert (a - b).norm() < 1e-4 * a.norm()
    other = run(MergeActivations, activations_a=parts[0], activations_b=parts[1])[0]  # control
    edits = build(forget, other).sites
    assert any((edits[n].u @ edits[n].m.T - e.u @ e.m.T).norm() > 1e-2 * e.u.norm() for n, e in one.sites.items())


def test_a_loaded_capture_is_the_saved_one_to_the_last_bit(mini, output):
    own = capture(mini, prompts("miplo"))
    back = saved_and_loaded(own, output)
    assert back.model == own.model
    for name, moments in own.moments.items():
        assert torch.equal(back.moments[name].factor, moments.factor)
        assert torch.equal(back.sums[name], own.sums[name])


def test_what_does_not_belong_together_is_refused_by_the_name_of_its_input(mini, output):
    one, other = capture(mini, prompts("miplo")), capture(mini, prompts("zorbo", "retain"))
    with pytest.raises(PureError, match="activations_a is to forget and activations_d to keep"):
        run(MergeActivations, activations_a=one, activations_b=one, activations_d=other)
    with pytest.raises(PureError, match="Nothing is connected to activations_b"):
        run(MergeActivations, activations_a=one, activations_c=one)


def test_the_report_says_what_is_in_the_file_and_without_the_recipe_it_does_not(mini, output):
    own = capture(mini, prompts("miplo\nzorbo"))
    assert "12 prompts to forget: miplo, zorbo; 24 recordings in each of 7" in report(SaveActivations, activations=own)
    unnamed = saved_and_loaded(own, output, embed_recipe=False)
    assert unnamed.anchors.concepts == ("what a file does not name (to forget)",)
    assert unnamed.count == own.count


def test_a_basis_is_not_loaded_as_a_capture_nor_the_other_way_round(mini, output):
    from pure_pack.nodes.basis import LoadBasis, SaveBasis

    own = capture(mini, prompts("miplo"))
    run(SaveActivations, activations=own, filename_prefix="pure/a")
    run(SaveBasis, basis=build(own), filename_prefix="pure/b")
    with pytest.raises(PureError, match="is for PURE Load Basis"):
        run(LoadActivations, name="b_00001_.safetensors")
    with pytest.raises(PureError, match="is for PURE Load Activations"):
        run(LoadBasis, name="a_00001_.safetensors")


def test_a_deleted_folder_is_an_empty_list_and_not_an_error(mini, output):
    others = paths.saved_files()  # of earlier runs
    run(SaveActivations, activations=capture(mini, prompts("miplo")), filename_prefix="pure/a")
    assert set(paths.saved_files()) == {"a_00001_.safetensors", *others}
    shutil.rmtree(output / "pure")
    with pytest.raises(FileNotFoundError):  # control: the host alone
        folder_paths.get_filename_list("pure")
    assert "a_00001_.safetensors" not in paths.saved_files()
    with pytest.raises(PureError, match="There is no file"):
        run(LoadActivations, name="a_00001_.safetensors")
