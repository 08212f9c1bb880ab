"""Saved files: checkpoint, LoRA and basis hold the edit, another client loads the LoRA, and a failed save leaves
nothing."""

import json
from pathlib import Path

import comfy.sd
import comfy.utils
import folder_paths
import pytest
import torch
from pure_pack.nodes.basis import LoadBasis, SaveBasis
from pure_pack.nodes.export import SaveCheckpoint, SaveLoRA
from pure_pack.nodes.host import saving
from pure_pack.nodes.host.layers import cross_attention_layers
from pure_pack.nodes.host.patches import ProjectionAdapter, edits_of, effective_weight
from pure_pack.pure_core.errors import PureError
from safetensors import safe_open

import inprocess
from random_models import load_random
from run_nodes import apply, build, capture, prompts, report, run, sample, with_lora


@pytest.fixture(autouse=True, scope="module")
def folders(tmp_path_factory):
    """Everything is saved into a folder of this test run."""
    before, folder = folder_paths.get_output_directory(), tmp_path_factory.mktemp("output")
    paths = dict(folder_paths.folder_names_and_paths)
    folder_paths.set_output_directory(str(folder))
    saving.register_folder()
    yield folder
    folder_paths.set_output_directory(before)
    folder_paths.folder_names_and_paths.clear()
    folder_paths.folder_names_and_paths.update(paths)


@pytest.fixture(scope="module")
def bases(mini):
    with torch.inference_mode():
        retain = capture(mini, prompts("zorbo", "retain"))
        return [
            build(capture(mini, prompts(name)), retain, rule="energy", forget_energy=0.999)
            for name in ("miplo", "bramby")
        ]


@pytest.fixture(scope="module")
def edited(mini, bases):
    with torch.inference_mode():
        return apply(mini[0], bases[0])


def lora_on(model, path, strength=1.0):
    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path)), strength, 0)[0]


def save_lora(model, **inputs):
    return run(SaveLoRA, model=model, **inputs)[0]


def difference(a, b):
    """Worst relative difference of the cross-attention keys and values of two MODELs."""
    keys = [layer.key(p) for layer in cross_attention_layers(a) for p in ("keys", "values")]
    return max(
        float((effective_weight(a, k) - effective_weight(b, k)).norm() / effective_weight(b, k).norm()) for k in keys
    )


def test_checkpoint_and_lora_sample_what_the_edited_model_samples(mini, edited):
    model, clip, vae = mini
    ours = run(SaveCheckpoint, model=edited, clip=clip, vae=vae)[0]
    from comfy_extras.nodes_model_merging import save_checkpoint

    save_checkpoint(edited, clip, vae, None, "checkpoints/host", folder_paths.get_output_directory())
    theirs = f"{folder_paths.get_output_directory()}/checkpoints/host_00001_.safetensors"
    wanted, original = sample(edited, clip), sample(model, clip)
    reloaded = inprocess.load_checkpoint(ours)
    apart = {
        "ours": reloaded[0],
        "host's": inprocess.load_checkpoint(theirs)[0],
        "lora": lora_on(model, save_lora(edited, dtype="fp32")),
    }
    for what, other in apart.items():
        assert (sample(other, clip) - wanted).norm() * 100 < (original - wanted).norm(), what
    undone = lora_on(reloaded[0], save_lora(edited, dtype="fp32"), -1.0)
    assert difference(undone, model) < 1e-5 < 1e-3 < difference(edited, model)


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 1e-6), ("fp16", 5e-4), ("bf16", 4e-3)])
@pytest.mark.parametrize("where", ["keys and values", "values", "output"])
def test_lora_is_the_edit_within_its_precision(mini, bases, dtype, bound, where):
    edited = apply(mini[0], bases[0], where=where, strength=0.7, iterations=2)
    path = save_lora(edited, dtype=dtype)
    loaded = lora_on(mini[0], path)
    assert set(loaded.patches) == set(edits_of(edited))
    for key in edits_of(edited):
        wanted, original = effective_weight(edited, key), effective_weight(mini[0], key)
        error = (effective_weight(loaded, key) - wanted).norm() / wanted.norm()
        assert error <= bound and error * 20 < (original - wanted).norm() / wanted.norm()

    def step(model):
        return sample(model, mini[1], steps=1)

    if where != "output":
        assert (step(loaded) - step(edited)).norm() * 20 < (step(mini[0]) - step(edited)).norm()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 5e-4), (torch.bfloat16, 4e-3)])
def test_a_checkpoint_in_half_precision_holds_the_edit(mini, bases, dtype, bound):
    model = comfy.sd.load_checkpoint_guess_config(
        str(inprocess.checkpoint()), output_vae=False, output_clip=False, model_options={"dtype": dtype}
    )[0]
    edited = apply(model, bases[0])
    path = run(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2])[0]
    with safe_open(path, framework="pt") as file:
        assert (
            file.get_tensor(
                "model.diffusion_model." + next(iter(edits_of(edited))).removeprefix("diffusion_model.")
            ).dtype
            == dtype
        )
    reloaded = comfy.sd.load_checkpoint_guess_config(
        path, output_vae=False, output_clip=False, model_options={"dtype": dtype}
    )[0]
    assert difference(reloaded, edited) <= bound < 20 * bound < difference(model, edited)

    def step(model):
        return sample(model, mini[1], steps=1)

    assert (step(reloaded) - step(edited)).norm() * 20 < (step(model) - step(edited)).norm()


def test_a_chain_of_edits_with_a_lora_between_is_one_file(mini, bases):
    before = with_lora(mini[0], seed=8)
    chain = apply(with_lora(apply(before, bases[0])), bases[1])
    assert difference(lora_on(before, save_lora(chain, dtype="fp32")), chain) < 2e-6
    assert difference(before, chain) > 1e-2  # control
    later = with_lora(chain)
    warned = report(SaveLoRA, model=later, dtype="fp32")
    assert "carry a patch that came after" in warned and "is not in this file" in warned
    assert "carry a patch" not in report(SaveLoRA, model=chain, dtype="fp32")


def test_nothing_to_save_is_refused_or_warned_of(mini, edited):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    model, clip, vae = mini
    with pytest.raises(PureError, match="carries no PURE edit"):
        save_lora(model)
    dropped = edited.clone()
    dropped.patches = {}
    with pytest.raises(PureError, match="carries no PURE edit"):
        save_lora(dropped)
    dropped.patches = dict(list(edited.patches.items())[3:])
    with pytest.raises(PureError, match="Only 11 of 14 edited weights"):
        save_lora(dropped)
    merged = ModelMergeSimple().merge(model, edited, 0.5)[0]
    with pytest.raises(PureError, match="came in through a merge"):
        save_lora(merged)
    half = ModelMergeSimple().merge(edited, model, 0.5)[0]
    with pytest.raises(PureError, match="leaves only a part of the edit"):
        save_lora(half)
    for mixed in (merged, half):  # a checkpoint has all of a merge
        again = comfy.sd.load_checkpoint_guess_config(
            run(SaveCheckpoint, model=mixed, clip=clip, vae=vae)[0],
            output_vae=False,
            output_clip=False,
            model_options={"dtype": torch.float32},
        )[0]
        assert difference(again, mixed) < 1e-6 < 1e-2 < difference(again, model)
    assert "carries no PURE edit: it was saved as it is" in report(SaveCheckpoint, model=model, clip=clip, vae=vae)
    assert "Warning" not in report(SaveCheckpoint, model=edited, clip=clip, vae=vae)


def test_a_host_that_saves_other_weights_is_an_error_and_leaves_no_file(mini, edited, folders, monkeypatch):
    save = comfy.sd.save_checkpoint
    monkeypatch.setattr(comfy.sd, "save_checkpoint", lambda path, model, *a, **k: save(path, mini[0], *a, **k))
    with pytest.raises(PureError, match="does not hold the edit"):
        run(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2], filename_prefix="wrong/x")
    assert list((folders / "wrong").iterdir()) == []


def test_the_recipe_is_written_only_where_allowed(mini, bases, edited, monkeypatch):
    def head(path):
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["pure"]), str(file.metadata())

    full, text = head(save_lora(edited))
    assert (
        full["edits"][0]["provenance"]["forget"]["concepts"] == ["miplo"]
        and full["edits"][0]["strength"] == 1.0
        and len(full["ranks"]) == 14
    )
    for path in (save_lora(edited, embed_recipe=False), run(SaveBasis, basis=bases[0], embed_recipe=False)[0]):
        assert "miplo" not in head(path)[1]
    monkeypatch.setattr(saving.args, "disable_metadata", True)
    assert "miplo" not in head(save_lora(edited))[1] and "miplo" in text


def test_a_basis_comes_back_and_makes_the_same_edit(mini, bases, edited):
    path = run(SaveBasis, basis=bases[0])[0]
    name = path.rsplit("/", 1)[-1]
    assert name in saving.saved_bases()
    back, told = run(LoadBasis, name=name)
    assert difference(apply(mini[0], back), edited) == 0 and "Erases miplo" in told
    for bad in ("../" + name, "nothing.safetensors", path):
        with pytest.raises(PureError, match="There is no basis"):
            run(LoadBasis, name=bad)


@pytest.mark.parametrize("prefix", ["../out", "/etc/pure", "a/../../b", "", "loras/.."])
def test_a_prefix_stays_inside_the_output_folder(edited, prefix):
    with pytest.raises(PureError, match="inside ComfyUI's output folder"):
        save_lora(edited, filename_prefix=prefix)


@pytest.mark.parametrize("prefix", ["loras/twice", "loras/slash/", "loras/dot/.", "./loras//double"])
def test_an_existing_file_is_never_overwritten(edited, prefix):
    one = save_lora(edited, filename_prefix=prefix)
    before = Path(one).read_bytes()
    assert save_lora(edited, filename_prefix=prefix) != one and Path(one).read_bytes() == before


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_loads_the_same_weights(family, tmp_path):
    """A client that nobody here wrote: diffusers' own conversion of the U-Net, diffusers' own LoRA loader."""
    from diffusers import UNet2DConditionModel
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model, state = load_random(family)
    xl = family == "sdxl"
    edited = model.clone()
    generator, patches = torch.Generator().manual_seed(0), {}
    for layer in cross_attention_layers(model):
        u, m = (torch.linalg.qr(torch.randn(layer.width, 5, generator=generator))[0] for _ in range(2))
        for part in ("keys", "values"):
            patches[layer.key(part)] = ProjectionAdapter(
                set(), (u, m, "left", json.dumps({"weights": 2 * len(cross_attention_layers(model))}))
            )
    edited.add_patches(patches)
    path = save_lora(edited, dtype="fp32")
    depth = [1, 2, 10] if xl else 1
    config = {
        "block_out_channels": (320,) * (3 if xl else 4),
        "cross_attention_dim": 2048 if xl else 768,
        "layers_per_block": 2,
        "use_linear_projection": xl,
        "attention_head_dim": 5 if xl else 8,
        "transformer_layers_per_block": depth,
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
        if xl
        else ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
        if xl
        else ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        **(
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
            }
            if xl
            else {}
        ),
    }
    with torch.inference_mode(False), torch.no_grad():
        unet = UNet2DConditionModel(**config)
        unet.load_state_dict(
            convert_ldm_unet_checkpoint({k: v.clone() for k, v in state.items()}, config={**unet.config, **config})
        )
        mixin = StableDiffusionXLLoraLoaderMixin if xl else StableDiffusionLoraLoaderMixin
        lora, alphas = mixin.lora_state_dict(path, unet_config=unet.config)[:2]
        before = {k: v.clone() for k, v in unet.state_dict().items() if ".attn2.to_" in k}
        mixin.load_lora_into_unet(lora, alphas, unet)
        unet.fuse_lora()
        after = {
            k.replace(".base_layer", ""): v
            for k, v in unet.state_dict().items()
            if ".attn2.to_" in k and "lora_" not in k
        }
    to_diffusers = {
        f"diffusion_model.{v}": k
        for k, v in comfy.utils.unet_to_diffusers(model.model.model_config.unet_config).items()
    }
    assert len(edits_of(edited)) == (140 if xl else 32)
    for key in edits_of(edited):
        wanted, got, old = effective_weight(edited, key), after[to_diffusers[key]], before[to_diffusers[key]]
        assert (got - wanted).norm() <= 1e-5 * wanted.norm() < 1e-2 * (old - wanted).norm(), key
