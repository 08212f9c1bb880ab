"""Attention sites, on U-Nets as they were before there were sites, and on models that are not in the table."""

from pathlib import Path

import pytest
import torch
from pure_pack.nodes.capture import CaptureActivations
from pure_pack.nodes.host import families, sampling, sites
from pure_pack.nodes.host.patches import edits_of
from pure_pack.nodes.host.sites import attention_sites, shared_blocks
from pure_pack.nodes.host.weights import effective_weight
from pure_pack.pure_core import contrast
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.projection import edit_matrix
from safetensors.torch import load_file

from random_transformers import RandomText, load_transformer
from run_nodes import SMALL, apply, build, capture, prompts, run

BEFORE = Path(__file__).parent / "fixtures" / "unet_edits.safetensors"  # products with a fixed vector


def test_a_unet_is_edited_as_before_there_were_sites(mini, monkeypatch):
    forget = capture(mini, prompts("miplo\nblue square monster"), batch_size=3)
    keep = capture(mini, prompts("zorbo\nfintolo\nquistle", role="retain"), batch_size=3)
    settings = {  # as they were the defaults then
        "contrast": {"structure": "whole layer", "keep_weight": 3.0},
        "energy": {"structure": "whole layer", "rule": "energy", "centering": "none"},
        "heads": {"structure": "per head", "keep_weight": 3.0},
    }
    monkeypatch.setattr(contrast, "RIDGE", 0.0125)
    before, seen = load_file(BEFORE), 0
    for label, changes in settings.items():
        basis = build(forget, keep, **changes)
        edited = apply(mini[0], basis)
        products = {f"{name}.e": edit.u.double() @ edit.m.double().T for name, edit in basis.sites.items()}
        products |= {key: effective_weight(edited, key) for key in edits_of(edited)}
        for name, matrix in products.items():
            want = before[f"{label}.{name}"].double()
            got = matrix.double() @ torch.linspace(-1, 1, matrix.shape[1], dtype=torch.float64)
            torch.testing.assert_close(got, want, atol=2e-5 * float(want.norm()), rtol=0)
            seen += 1
        for name, edit in basis.sites.items():
            torch.testing.assert_close(edit.values, before[f"{label}.{name}.v"], rtol=1e-4, atol=0)
    assert seen == 3 * 7 * 3


def test_with_one_edit_per_head_h_is_e_h_and_with_a_whole_layer_it_is_not(mini):
    """Why: heads attend differently, so an edit that mixes their channels acts on other sums than h."""
    step = {"recorded_steps": 1, "batch_size": 8}
    forget = capture(mini, prompts("miplo", templates="{}"), **step)
    keep = capture(mini, prompts("zorbo\nfintolo", role="retain", templates="{}"), **step)
    first, away = attention_sites(mini[0])[0].name, {}
    for structure in ("per head", "whole layer"):
        basis = build(forget, keep, structure=structure, keep_weight=0.3)
        edited = apply(mini[0], basis, weights="values")
        edit = basis.sites[first]
        want = forget.sums[first] @ edit_matrix(edit.u.double(), edit.m.double()).T
        got = capture((edited, mini[1]), prompts("miplo", templates="{}"), **step).sums[first]
        away[structure] = float((got - want).norm() / (want - forget.sums[first]).norm())
    assert away["per head"] < 1e-4
    assert away["whole layer"] > 1e-2


def test_the_structure_of_a_family_under_other_names_is_refused_by_name():
    model = load_transformer("Wan t2v")
    model.model.diffusion_model.other_blocks = model.model.diffusion_model.blocks
    del model.model.diffusion_model.blocks
    with pytest.raises(
        PureError, match=r"This MODEL \(WAN21\) has no attention to text that PURE knows\. PURE works with"
    ):
        attention_sites(model)


def test_a_site_that_the_forward_pass_does_not_call_is_found_by_its_rows(monkeypatch):
    model, clip = load_transformer("Wan t2v"), RandomText("Wan t2v")
    block = model.model.diffusion_model.blocks[1]
    monkeypatch.setattr(block.cross_attn, "forward", lambda x, context, **kwargs: x)
    with pytest.raises(PureError, match=r"Layer blocks.1.cross_attn gave 0 recordings and not 2"):
        capture((model, clip), prompts("one", templates="{}"), scheduler="simple")


def test_refusals_list_what_works_and_never_what_does_not(mini):
    words = families.supported()
    assert all(part in words for family in families.FAMILIES for part in family.name.split(", "))
    assert not any(name in words for name, _ in families.WITHOUT_SITES.values())


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("layers.0.self_attention.to_v", "ERNIE-Image"),
        ("blocks.0.attn.qkv_proj", "MiniMax H3"),
        ("down_blocks.0.1.kv_mapper.1", "Stable Cascade"),
    ],
)
def test_a_family_that_cannot_be_edited_is_called_by_its_name(path, name):
    """Module paths as the host's classes have them (0.33.0)."""
    (why,) = [why for known, why in families.WITHOUT_SITES.values() if known == name]
    told = sites.refusal("Its class", {path: torch.nn.Identity()})
    assert told == f"This MODEL (Its class) is built like {name}: {why}. {families.supported()}."


def test_a_model_whose_text_and_picture_share_weights_is_captured_only_on_request():
    part = {"model": load_transformer("Z-Image"), "clip": RandomText("Z-Image"), "prompts": prompts("one")}
    with pytest.raises(PureError, match=r"built like Z-Image and Lumina 2: .*Turn on experimental"):
        run(CaptureActivations, **part)
    assert run(CaptureActivations, **part, **SMALL, scheduler="simple", experimental=True)[0].count


@pytest.mark.parametrize(("family", "count"), [("Flux.1", 1), ("AuraFlow", 1), ("SD 3", 0)])
def test_blocks_that_text_and_picture_share_are_counted(family, count):
    assert shared_blocks(load_transformer(family)) == count


def test_prompts_whose_tensors_are_not_per_batch_run_alone():
    """Anima's token ids and weights have no batch dimension: of a batch, the first prompt's would serve all."""
    plain = {text: (torch.zeros(1, 7, 8), {"pooled_output": torch.zeros(1, 4)}) for text in "abc"}
    ids = {text: (torch.zeros(1, 7, 8), {"t5xxl_ids": torch.zeros(9)}) for text in "abc"}
    jobs = sampling.jobs_of([(text, None) for text in "abc"], 2)
    assert [len(batch) for batch in sampling.batched(jobs, plain, 4)] == [4, 2]
    assert [len(batch) for batch in sampling.batched(jobs, ids, 4)] == [2, 2, 2]
    longer = {**plain, "c": (torch.zeros(1, 7, 8), {"pooled_output": torch.zeros(1, 5)})}
    assert [len(batch) for batch in sampling.batched(jobs, longer, 4)] == [4, 2]
