"""Every family of transformers in the table, on a small random model of the host's own classes: from sites to files."""

import inspect
import sys

import comfy.ldm.flux.layers
import comfy.model_detection
import comfy.sample
import comfy.samplers
import comfy.sd
import comfy.utils
import pytest
import torch
from pure_pack.nodes.host import checkpoint, lora_file, recording, sampling
from pure_pack.nodes.host.patches import edits_of, place_of
from pure_pack.nodes.host.sites import attention_sites, diffusion_model
from pure_pack.nodes.host.weights import base_weight, effective_weight
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.projection import edit_matrix
from safetensors.torch import load_file

from random_transformers import TRANSFORMERS, RandomText, in_this_host, load_transformer
from run_nodes import apply, build, capture, prompts, with_lora

FORGET = "one thing\nanother and quite a different long one\nthird"
KEEP = "something else\nand more\nyet more of it"
STEPS = {"steps": 4, "recorded_steps": 2, "scheduler": "simple"}
TEXT_LAST = {"HiDream"}
if "flipped_img_txt" in inspect.signature(comfy.ldm.flux.layers.DoubleStreamBlock).parameters:  # gone in newer hosts
    TEXT_LAST |= {"HunyuanVideo"}
JOINT = {family for family in TRANSFORMERS if family in ("SD 3", "SD 3.5 medium", "Qwen-Image", "Flux.1", "Flux.2")}
JOINT |= {"Chroma", "HunyuanVideo", "AuraFlow", "HiDream", "Lumina 2", "Z-Image", "OmniGen2", "Krea 2"}
SHARES = {"Lumina 2": 2, "OmniGen2": 2, "Krea 2": 2}  # heads that share one of the values' heads
PADDING = {"Z-Image": 2}  # tokens behind the picture's
# The host takes a narrow one for nothing that it knows, or for another kind of the family.
UNKNOWN = {"Flux.1", "Flux.2", "Chroma", "AuraFlow", "Lumina 2", "Z-Image", "Kandinsky 5"}
NAMES = {
    "PixArt alpha": "blocks.0.cross_attn",
    "PixArt sigma": "blocks.0.cross_attn",
    "HunyuanDiT": "blocks.0.attn2",
    "Wan t2v": "blocks.0.cross_attn",
    "Wan i2v": "blocks.0.cross_attn",
    "Wan VACE": "blocks.0.cross_attn",
    "Cosmos-Predict2": "blocks.0.cross_attn",
    "Anima": "blocks.0.cross_attn",
    "Kandinsky 5": "visual_transformer_blocks.0.cross_attention",
    "Cosmos 1": "blocks.block0.blocks.1.block.attn",
    "LTX Video": "transformer_blocks.0.attn2",
    "LTX-2": "transformer_blocks.0.attn2",
    "LTX-2.3": "transformer_blocks.0.attn2",
    "SD 3": "joint_blocks.0",
    "SD 3.5 medium": "joint_blocks.0",
    "Qwen-Image": "transformer_blocks.0.attn",
    "Flux.1": "double_blocks.0",
    "Flux.2": "double_blocks.0",
    "Chroma": "double_blocks.0",
    "HunyuanVideo": "double_blocks.0",
    "AuraFlow": "double_layers.0.attn",
    "HiDream": "double_stream_blocks.0.block.attn1",
    "Lumina 2": "layers.0.attention",
    "Z-Image": "layers.0.attention",
    "OmniGen2": "layers.0.attn",
    "Krea 2": "blocks.0.attn",
}


def pixels(model, family):
    """A side of pictures whose latents have the family's small size."""
    scale = sampling.DOWNSCALE.get(type(model.get_model_object("latent_format")).__name__, 8)
    return TRANSFORMERS[family].side * scale


def size(model, family):
    return {**STEPS, "width": pixels(model, family), "height": pixels(model, family)}


@pytest.fixture(scope="module", params=in_this_host())
def case(request):
    """A family, its MODEL, its text encoder, and captures of what to forget and to keep."""
    family = request.param
    with torch.inference_mode():
        model, clip = load_transformer(family), RandomText(family)
        inputs = {"templates": "{}"}
        captures = [
            capture((model, clip), prompts(text, role, **inputs), batch_size=3, **size(model, family))
            for text, role in ((FORGET, "forget"), (KEEP, "retain"))
        ]
    return family, model, clip, captures


def explicit(q, k, v, heads, only, mask=None, skip_reshape=False, **_):
    """Mean over the picture's tokens of sum_j a_ij v_j over the keys in `only`, by its definition, in float64."""
    if not skip_reshape:  # some give v with its heads apart
        q, k, v = (t.flatten(2) for t in (q, k, v))
        q, k, v = (t.view(t.shape[0], -1, heads, t.shape[-1] // heads).transpose(1, 2) for t in (q, k, v))
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    scores = q.double() @ k.double().transpose(-1, -2) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, -1)[..., only]
    return (weights @ v.double()[:, :, only]).transpose(1, 2).flatten(2)


def independent_rows(family, model, clip, texts, monkeypatch):
    """Site -> (prompts, steps, d) rows, sampled one prompt at a time, from what each site's attention call is given."""
    root, sites, current, calls = diffusion_model(model), attention_sites(model), [], []
    of_text = []  # the latest text's values, held: a freed tensor's memory is soon another's
    widths = {}  # of what its module was given

    def of_values(name):
        def hook(_, args, out):
            of_text[:] = [out]
            widths[name] = args[0].shape[-1]

        return hook

    handles = [root.get_submodule(site.text).register_forward_hook(of_values(site.text)) for site in sites]
    handles += [
        root.get_submodule(site.name).register_forward_pre_hook(
            lambda module, args, name=site.name: current.append((name, gates_of(module, args)))
        )
        for site in sites
    ]

    def spying(original):
        def spy(q, k, v, heads=None, mask=None, **kwargs):
            out = original(q, k, v, heads, mask=mask, **kwargs)
            # i2v: another call for a start picture
            if current and ("i2v" not in family or v.data_ptr() == of_text[0].data_ptr()):
                name, gates = current.pop()
                calls.append((name, (q, k, v, heads), {"mask": mask, **kwargs}, gates))
            return out

        return spy

    with monkeypatch.context() as patch:
        for name, module in list(sys.modules.items()):
            for attention in ("optimized_attention", "optimized_attention_masked"):
                if name.startswith("comfy.ldm") and hasattr(module, attention):
                    patch.setattr(module, attention, spying(getattr(module, attention)))
        side = pixels(model, family)
        noise = sampling.start_noise(model, 0, 1, side, side)
        rows = {site.name: [] for site in sites}
        for text in texts:
            calls.clear()
            positive = clip.encode_from_tokens_scheduled(text)
            sampler = comfy.samplers.KSampler(model, STEPS["steps"], "cpu", "euler", "simple", 1.0, model.model_options)
            sampler.sample(
                noise,
                positive,
                clip.encode_from_tokens_scheduled(""),
                cfg=1.0,
                latent_image=torch.zeros_like(noise),
                last_step=STEPS["recorded_steps"],
                disable_pbar=True,
                seed=0,
            )
            for site in sites:
                own = [call for name, *call in calls if name == site.name]
                assert len(own) == STEPS["recorded_steps"]
                assert all(args[3] == site.heads * site.shares for args, *_ in own)
                assert widths[site.text] == site.context
                parts = torch.cat([row_of(family, *call) for call in own])
                # of grouped queries, each is a row: head g x shares + r of the attention has the values of head g
                parts = parts.view(len(parts), site.heads, site.shares, -1).transpose(1, 2)
                rows[site.name].append(parts.reshape(-1, site.width))
    for handle in handles:
        handle.remove()
    return {name: torch.stack(own) for name, own in rows.items()}


def gates_of(attention, args):
    """LTX-2.3 weighs each head's output, token by token, (1, tokens, heads); None elsewhere."""
    logits = getattr(attention, "to_gate_logits", None)
    return None if logits is None else 2 * torch.sigmoid(logits(args[0]).double())


def row_of(family, args, kwargs, gates=None):
    """The row of one attention call, (1, d)."""
    q, k = args[:2]
    axis = 2 if kwargs.get("skip_reshape") else 1
    queries, keys = q.shape[axis], k.shape[axis]
    if family not in JOINT:
        rows = explicit(*args, torch.arange(keys), **kwargs)
        return (rows if gates is None else rows * gates.repeat_interleave(rows.shape[-1] // args[3], -1)).mean(1)
    patch = 1 if family == "Flux.2" else 2
    pictures = (TRANSFORMERS[family].side // patch) ** 2
    text = queries - pictures - PADDING.get(family, 0)
    of_text, of_picture = torch.arange(text), torch.arange(text, text + pictures)
    if family in TEXT_LAST:
        of_text, of_picture = torch.arange(pictures, queries), torch.arange(pictures)
    return explicit(*args, of_text, **kwargs)[:, of_picture].mean(1)


def test_sites_are_found_with_their_widths_heads_and_weights(case):
    family, model, _, _ = case
    sites, root = attention_sites(model), diffusion_model(model)
    assert len(sites) == TRANSFORMERS[family].sites
    assert sites[0].name == NAMES[family]
    state = model.model.state_dict()
    for site in sites:
        assert site.shares == SHARES.get(family, 1)
        assert site.width * site.shares == root.get_submodule(site.output).weight.shape[1]
        assert site.width % site.heads == 0
        owner = root.get_submodule(site.text)
        slabs = site.weights["values"]
        assert len(slabs) == 1 + (owner.bias is not None)
        for slab in slabs:
            length = state[slab.key].shape[0] if slab.offset is None else slab.offset[2]
            assert length == site.width
        assert ("keys" in site.weights) == family.startswith("PixArt")
        assert ("output" in site.weights) == (family not in JOINT and family != "Wan i2v")
    depths = [site.depth for site in sites]
    assert depths[0] == 0
    assert depths[-1] == 1


def test_rows_equal_an_independent_computation_prompt_by_prompt(case, monkeypatch):
    family, model, clip, (together, _) = case
    texts = FORGET.splitlines()
    one_by_one = capture((model, clip), prompts(FORGET, templates="{}"), batch_size=1, **size(model, family))
    want = independent_rows(family, model, clip, texts, monkeypatch)
    each = STEPS["recorded_steps"] * SHARES.get(family, 1)
    assert together.rows == one_by_one.rows == (each,) * len(texts)
    for name, rows in want.items():
        for got in (together, one_by_one):
            error = (got.sums[name] - rows.sum(1)).norm(dim=1) / rows.sum(1).norm(dim=1)
            assert error.max() < 3e-5, (name, error)
        assert (rows.sum(1)[0] - rows.sum(1)[1]).norm() > 1e-3 * rows.sum(1)[0].norm()  # control: prompts differ


@pytest.fixture(scope="module")
def edited(case):
    """The family's MODEL with an edit of its values per head, and the basis."""
    with torch.inference_mode():
        basis = build(*case[3], keep_weight=0.3, structure="per head")
        return apply(case[1], basis, weights="values"), basis


def test_edited_values_are_e_times_what_they_were(case, edited):
    model, (model_edited, basis) = case[1], edited
    for site in attention_sites(model):
        edit = basis.sites[site.name]
        e = edit_matrix(edit.u.double(), edit.m.double())
        for slab in site.weights["values"]:
            before, after = (effective_weight(m, slab.key).double() for m in (model, model_edited))
            span = slice(None) if slab.offset is None else slice(slab.offset[1], slab.offset[1] + slab.offset[2])
            want = before.clone()
            want[span] = e @ before[span]
            assert (after - want).norm() < 1e-6 * want.norm() < 1e-2 * (want - before).norm()


@pytest.mark.parametrize("place", ["early", "late"])
def test_h_is_e_times_h_where_no_edit_comes_before(case, edited, place):
    family, model, clip, _ = case
    site = next(site.name for site in attention_sites(model) if place_of(site) == place)
    step = {**size(model, family), "recorded_steps": 1}
    before, after = (
        capture((m, clip), prompts(FORGET, templates="{}"), batch_size=3, **step)
        for m in (model, apply(model, edited[1], weights="values", layers=place))
    )
    edit = edited[1].sites[site]
    want = before.sums[site] @ edit_matrix(edit.u.double(), edit.m.double()).T
    assert (after.sums[site] - want).norm() < 1e-5 * want.norm()
    assert (want - before.sums[site]).norm() > 1e-2 * want.norm()  # control: it is an edit


def latent_of(model, family, clip, text="one thing"):
    noise = sampling.start_noise(model, 3, 1, pixels(model, family), pixels(model, family))
    positive, negative = clip.encode_from_tokens_scheduled(text), clip.encode_from_tokens_scheduled("")
    return comfy.sample.sample(
        model, noise, 3, 2.0, "euler", "simple", positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=3
    )


def test_the_edited_model_samples_and_its_lora_gives_the_same(case, edited, tmp_path):
    family, model, clip, _ = case
    weights = {key: base_weight(model, key).clone() for key in edits_of(edited[0])}
    original, changed = (latent_of(m, family, clip) for m in (model, edited[0]))
    assert torch.isfinite(changed).all()
    assert (changed - original).norm() > 1e-3 * original.norm()
    saved = lora_file.save_lora(edited[0], tmp_path / "x_00001_.safetensors", "fp32", False, lambda: None)
    assert len(saved.ranks) == sum(key.endswith("weight") for key in edits_of(edited[0])) == len(attention_sites(model))
    loaded, _ = comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(saved.path)), 1.0, 0.0)
    assert (latent_of(loaded, family, clip) - changed).norm() < 0.01 * (changed - original).norm()
    comfy.model_management.unload_all_models()
    assert all(torch.equal(base_weight(model, key), weight) for key, weight in weights.items())
    assert all(torch.equal(comfy.utils.get_attr(model.model, key), weight) for key, weight in weights.items())


def test_the_saved_diffusion_model_gives_the_same(case, edited, tmp_path):
    """Into another model of the family, as the host's loader fills one."""
    family, _, clip, _ = case
    saved = checkpoint.save_checkpoint(edited[0], None, None, tmp_path / "x_00001_.safetensors", False, lambda: None)
    assert saved.error < 1e-6
    assert family in UNKNOWN or saved.warnings == []
    again, want = load_transformer(family, seed=2), latent_of(edited[0], family, clip)
    before = latent_of(again, family, clip)
    state = load_file(saved.path)
    again.model.load_model_weights(state, comfy.model_detection.unet_prefix_from_state_dict(state))
    comfy.model_management.unload_all_models()
    assert (latent_of(again, family, clip) - want).norm() < 1e-4 * want.norm()
    assert (before - want).norm() > 1e-2 * want.norm()  # control


@pytest.mark.parametrize("family", ["PixArt alpha", "Wan t2v", "SD 3", "Lumina 2"])
def test_a_chain_of_edits_with_loras_before_and_between_is_one_lora(family, tmp_path):
    """Whole weights, halves and thirds of fused ones, and the smaller third of grouped queries; keys beside values."""
    model, clip = load_transformer(family), RandomText(family)
    keys = {"weights": "keys and values" if "PixArt" in family else "values"}

    def basis_on(some, forget):
        captures = [
            capture((some, clip), prompts(text, role, templates="{}"), batch_size=3, **size(model, family))
            for text, role in ((forget, "forget"), (KEEP, "retain"))
        ]
        return build(*captures, structure="per head")

    with torch.inference_mode():
        before = with_lora(model, seed=8)
        one = with_lora(apply(before, basis_on(before, "one thing"), **keys))
        chain = apply(one, basis_on(one, "another"), **keys)
        saved = lora_file.save_lora(chain, tmp_path / "x_00001_.safetensors", "fp32", False, lambda: None)
    loaded, _ = comfy.sd.load_lora_for_models(before, None, comfy.utils.load_torch_file(str(saved.path)), 1.0, 0.0)
    for key in edits_of(chain):
        want = effective_weight(chain, key)
        assert (effective_weight(loaded, key) - want).norm() < 1e-5 * want.norm(), key
        assert (effective_weight(before, key) - want).norm() > 1e-2 * want.norm(), key  # control


def test_nothing_is_left_on_the_model_after_a_failure(case, monkeypatch):
    family, model, clip, _ = case

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.model.modules())

    before, options, during = hooks(), repr(model.model_options), []

    def fail(self):
        during.append(hooks())
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="in the middle"):
        patch.setattr(recording.Pool, "rows", fail)
        capture((model, clip), prompts("one", templates="{}"), **size(model, family))
    assert hooks() == before
    assert repr(model.model_options) == options
    assert during[0] > before  # control


def test_weights_says_why_it_cannot_be_edited(case):
    family, model, _, captures = case
    basis = build(*captures, structure="per head")
    if family in JOINT:
        refused = {"keys and values": "share one attention", "output": "share its attention's output"}
    else:
        refused = {} if family.startswith("PixArt") else {"keys and values": "a norm follows its keys"}
    for weights, words in refused.items():
        with pytest.raises(PureError, match=words):
            apply(model, basis, weights=weights)
    apply(model, basis, weights="values")  # control
