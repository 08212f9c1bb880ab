"""Saved files: checkpoint, LoRA and basis hold the edit, another client loads the LoRA, and a failed save leaves
nothing."""

import json
import shutil
from pathlib import Path

import comfy.model_management
import comfy.model_sampling
import comfy.sd
import comfy.utils
import comfy.weight_adapter
import folder_paths
import pytest
import torch
from pure_pack.nodes.basis import LoadBasis, SaveBasis
from pure_pack.nodes.export import SaveCheckpoint, SaveLoRA
from pure_pack.nodes.host import paths
from pure_pack.nodes.host.patches import ProjectionAdapter, edits_of
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.nodes.host.weights import effective_weight
from pure_pack.pure_core.errors import PureError
from safetensors import safe_open

import inprocess
from random_models import load_random
from run_nodes import apply, build, capture, output_in, prompts, report, run, sample, with_lora


@pytest.fixture(autouse=True, scope="module")
def folders(tmp_path_factory):
    """Everything is saved into a folder of this test run."""
    with output_in(tmp_path_factory.mktemp("output")) as folder:
        yield folder


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
    keys = [layer.key(p) for layer in attention_sites(a) for p in ("keys", "values")]
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
@pytest.mark.parametrize("weights", ["keys and values", "values", "output"])
def test_lora_is_the_edit_within_its_precision(mini, bases, dtype, bound, weights):
    edited = apply(mini[0], bases[0], weights=weights, strength=0.7, iterations=2)
    path = save_lora(edited, dtype=dtype)
    loaded = lora_on(mini[0], path)
    assert set(loaded.patches) == set(edits_of(edited))
    for key in edits_of(edited):
        wanted, original = effective_weight(edited, key), effective_weight(mini[0], key)
        error = (effective_weight(loaded, key) - wanted).norm() / wanted.norm()
        assert error <= bound
        assert error * 20 < (original - wanted).norm() / wanted.norm()

    def step(model):
        return sample(model, mini[1], steps=1)

    if weights != "output":
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
    assert "carry a patch that came after" in warned
    assert "is not in this file" in warned
    assert "carry a patch" not in report(SaveLoRA, model=chain, dtype="fp32")


WIDE = ("attn1.to_q", "attn1.to_out.0", "attn2.to_q", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj", "proj_in")


def wide_lora(model, seed=5):
    """A clone with an ordinary LoRA on attentions of both kinds, a feed-forward, a convolution, a bias and a norm."""
    generator, patches = torch.Generator().manual_seed(seed), {}
    state = model.model.state_dict()
    for key in [k for k in state if k.startswith("diffusion_model.") and any(f"{part}.weight" in k for part in WIDE)]:
        out, into = state[key].shape[0], state[key][0].numel()
        up, down = (0.05 * torch.randn(shape, generator=generator) for shape in ((out, 4), (4, into)))
        patches[key] = comfy.weight_adapter.LoRAAdapter(set(), (up, down, 4.0, None, None, None))
    for key in [k for k in state if k.endswith("attn1.to_out.0.bias") or k.endswith("norm1.weight")]:
        patches[key] = ("diff", (0.05 * torch.randn(state[key].shape, generator=generator),))
    clone = model.clone()
    assert len(clone.add_patches(patches)) == len(patches) > 40
    return clone


def every_difference(a, b):
    """Worst difference of any parameter of two MODELs that either patches, relative to its size."""
    keys = set(a.patches) | set(b.patches)
    return max(
        float((effective_weight(a, k) - effective_weight(b, k)).norm() / effective_weight(b, k).norm()) for k in keys
    )


def test_a_lora_between_two_edits_is_in_the_file_whatever_it_touches(mini, bases):
    """to_out was off by .19, and the sampled latent by half of the change, without a word."""
    before = with_lora(mini[0], seed=8)
    chain = apply(wide_lora(apply(before, bases[0], weights="values")), bases[1], weights="values")
    path = save_lora(chain, dtype="fp32")
    loaded = lora_on(before, path)
    assert every_difference(loaded, chain) < 2e-6
    only_edits = apply(apply(before, bases[0], weights="values"), bases[1], weights="values")
    assert every_difference(only_edits, chain) > 0.05  # control: the LoRA is a large part of it
    wanted, got, original = (sample(m, mini[1]) for m in (chain, loaded, before))
    assert (got - wanted).norm() < 0.01 * (original - wanted).norm()


def test_a_lora_after_the_edits_is_said_not_to_be_in_the_file_whatever_it_touches(mini, bases):
    edited = apply(mini[0], bases[0], weights="values")
    self_attention = edited.clone()
    self_attention.patches = {
        **edited.patches,
        **{k: v for k, v in wide_lora(mini[0]).patches.items() if ".attn1." in k or ".ff." in k},
    }
    warned = report(SaveLoRA, model=self_attention, dtype="fp32")
    assert "came after PURE Apply Projection" in warned
    assert "not in this file" in warned
    assert "Warning" not in report(SaveLoRA, model=edited, dtype="fp32")
    first = apply(wide_lora(mini[0]), bases[0], weights="values")  # control: a LoRA before the edit is the base's
    assert "Warning" not in report(SaveLoRA, model=first, dtype="fp32")


def test_a_merge_between_or_after_edits_is_refused(mini, bases):
    from comfy_extras.nodes_model_merging import ModelMergeSimple

    other, edited = wide_lora(mini[0], seed=9), apply(mini[0], bases[0])
    merged = ModelMergeSimple().merge(edited, other, 0.5)[0]
    for model in (merged, apply(merged, bases[1])):
        with pytest.raises(PureError, match="A merge after the first PURE edit"):
            save_lora(model)
    assert save_lora(apply(ModelMergeSimple().merge(mini[0], other, 0.5)[0], bases[0]))  # control: merged before


def by_node(model, sampling, zsnr=False):
    """The MODEL as ModelSamplingDiscrete gives it."""
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    return ModelSamplingDiscrete().patch(model, sampling, zsnr)[0]


@pytest.mark.parametrize("zsnr", [True, False])
def test_v_prediction_set_by_a_node_comes_back_with_the_checkpoint(zsnr, mini):
    """It came back as epsilon prediction, "read back ... 0.0e+00"."""
    model = by_node(load_random("ssd-1b")[0], "v_prediction", zsnr)
    path = run(SaveCheckpoint, model=model, clip=mini[1], vae=mini[2], filename_prefix="checkpoints/v")[0]
    text = report(SaveCheckpoint, model=model, clip=mini[1], vae=mini[2], filename_prefix="checkpoints/v")
    again = comfy.sd.load_checkpoint_guess_config(path, output_vae=False, output_clip=False)[0]
    live, loaded = (m.get_model_object("model_sampling") for m in (model, again))
    assert isinstance(loaded, comfy.model_sampling.V_PREDICTION)
    assert torch.equal(live.sigmas, loaded.sigmas)
    assert (float(loaded.sigma_max) > 1000) == zsnr
    assert "cannot say how" not in text


@pytest.mark.parametrize("sampling", ["v_prediction", "lcm", "x0"])
def test_what_a_checkpoint_cannot_say_of_sampling_is_warned_of_with_the_node_to_add(mini, edited, sampling):
    clip, vae = mini[1:]
    text = report(SaveCheckpoint, model=by_node(edited, sampling), clip=clip, vae=vae)
    assert f"({sampling}): after loading it, add ModelSamplingDiscrete" in text
    assert "cannot say how" not in report(SaveCheckpoint, model=by_node(edited, "eps"), clip=clip, vae=vae)  # control


@pytest.mark.parametrize("lost", ["clip", "vae"])
def test_a_host_that_leaves_a_part_out_is_an_error_and_leaves_no_file(mini, edited, folders, monkeypatch, lost):
    save = comfy.sd.save_checkpoint

    def without(path, model, clip, vae, **kwargs):
        return save(path, model, None if lost == "clip" else clip, None if lost == "vae" else vae, **kwargs)

    monkeypatch.setattr(comfy.sd, "save_checkpoint", without)
    with pytest.raises(PureError, match=f"holds no {lost.upper()}"):
        run(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2], filename_prefix="parts/x")
    assert list((folders / "parts").iterdir()) == []


def test_a_host_that_saves_other_unedited_weights_is_an_error(mini, edited, monkeypatch):
    save = comfy.sd.save_checkpoint

    def spoiled(path, model, *args, **kwargs):
        other = wide_lora(model)
        return save(path, other, *args, **kwargs)

    monkeypatch.setattr(comfy.sd, "save_checkpoint", spoiled)
    with pytest.raises(PureError, match=r"does not hold the (MODEL's|edit of)"):
        run(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2], filename_prefix="wrong/y")


def test_a_host_that_cannot_write_such_a_model_is_a_sentence_that_points_to_the_lora(mini, edited, monkeypatch):
    """As with mixed precision, where the host's saver meets a dictionary."""

    def fail(*args, **kwargs):
        raise AttributeError("'dict' object has no attribute 'is_contiguous'")

    monkeypatch.setattr(comfy.sd, "save_checkpoint", fail)
    with pytest.raises(PureError, match=r"cannot save this MODEL as a checkpoint .* PURE Save LoRA instead"):
        run(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2])


def test_an_edit_that_takes_everything_is_saved_in_half_precision(mini):
    """Nothing to keep: E W is almost 0, and an error relative to it is large and means nothing."""
    model = comfy.sd.load_checkpoint_guess_config(
        str(inprocess.checkpoint()), output_vae=False, output_clip=False, model_options={"dtype": torch.float16}
    )[0]
    edited, sites = model.clone(), attention_sites(model)
    everything = {site.key("values"): torch.linalg.qr(torch.randn(site.width, site.width)).Q for site in sites}
    recipe = json.dumps({"slabs": len(sites)})
    edited.add_patches({key: ProjectionAdapter(set(), (q, q, "left", recipe, {})) for key, q in everything.items()})
    key = sites[0].key("values")
    assert effective_weight(edited, key).norm() < 1e-5 * effective_weight(model, key).norm()
    assert "edited weights are the MODEL's to" in report(SaveCheckpoint, model=edited, clip=mini[1], vae=mini[2])


def test_a_host_that_computes_patches_in_fp16_may_round_like_it(mini, edited, monkeypatch):
    """Newer hosts do on NVIDIA cards, also for files in fp32, and every save was refused there."""
    from pure_pack.nodes.host import checkpoint

    key = next(iter(edits_of(edited)))
    assert checkpoint.allowed(edited, key, torch.float32) == 1e-5
    monkeypatch.setattr(comfy.model_management, "lora_compute_dtype", lambda device: torch.float16, raising=False)
    assert checkpoint.allowed(edited, key, torch.float32) == 1e-3
    assert checkpoint.allowed(edited, key, torch.bfloat16) == 8e-3  # what is stored coarser may differ by more


@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("pure-concept-unlearning", False),
        ("PURE_0.1", False),
        ("pure-concept-unlearning (1)", True),
        ("pure concept", True),
        ("pure[1]", True),
        ("pure-ü", True),
    ],
)
def test_a_folder_name_that_the_host_does_not_serve_is_said_at_start(monkeypatch, caplog, name, warned):
    monkeypatch.setattr(paths, "__file__", f"/custom_nodes/{name}/nodes/host/paths.py")
    with caplog.at_level("WARNING"):
        paths.warn_of_folder_name()
    assert ("Rename it" in caplog.text and name in caplog.text) == warned


def test_a_missing_clip_or_vae_is_a_sentence_before_any_work(mini, edited, monkeypatch):
    monkeypatch.setattr(comfy.sd, "save_checkpoint", lambda *a, **k: pytest.fail("work was done"))
    for parts in ({"clip": None, "vae": mini[2]}, {"clip": mini[1], "vae": None}):
        with pytest.raises(PureError, match=r"There is no (CLIP|VAE)"):
            run(SaveCheckpoint, model=edited, **parts)


def test_without_clip_and_vae_the_diffusion_model_alone_is_saved(mini, edited):
    text = report(SaveCheckpoint, model=edited, filename_prefix="diffusion_models/alone")
    assert "the diffusion model alone is there, and the 14 edited weights" in text
    assert "Warning" not in text
    path = Path(folder_paths.get_output_directory()) / "diffusion_models" / "alone_00001_.safetensors"
    with safe_open(path, framework="pt") as file:
        assert {key.split(".")[0] for key in file.keys()} == {"model"}  # noqa: SIM118
    loaded = comfy.sd.load_diffusion_model(str(path), model_options={"dtype": torch.float32})
    assert difference(loaded, edited) < 1e-6 < 1e-3 < difference(mini[0], edited)


def test_the_refiners_lora_has_no_label_of_another_family():
    model = load_random("sdxl refiner")[0]
    site = attention_sites(model)[0]
    edited = model.clone()
    u = torch.linalg.qr(torch.randn(site.width, 2, generator=torch.Generator().manual_seed(0)))[0]
    edited.add_patches({site.key("values"): ProjectionAdapter(set(), (u, u, "left", json.dumps({"slabs": 1}), {}))})
    with safe_open(save_lora(edited), framework="pt") as file:
        said = file.metadata()
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-refiner/lora"
    assert "ss_base_model_version" not in said
    assert "ss_v2" not in said


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
    with pytest.raises(PureError, match="leaves only a part of it"):
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
    assert full["edits"][0]["forget"]["concepts"] == ["miplo"]
    assert full["edits"][0]["strength"] == 1.0
    assert len(full["ranks"]) == 14
    for path in (save_lora(edited, embed_recipe=False), run(SaveBasis, basis=bases[0], embed_recipe=False)[0]):
        assert "miplo" not in head(path)[1]
    monkeypatch.setattr(paths.args, "disable_metadata", True)
    assert "miplo" not in head(save_lora(edited))[1]
    assert "miplo" in text


def test_a_basis_comes_back_and_makes_the_same_edit(mini, bases, edited):
    path = run(SaveBasis, basis=bases[0])[0]
    name = path.rsplit("/", 1)[-1]
    assert name in paths.saved_files()
    back, told = run(LoadBasis, name=name)
    assert difference(apply(mini[0], back), edited) == 0
    assert "Erases miplo" in told
    for bad in ("../" + name, "nothing.safetensors", path):
        with pytest.raises(PureError, match="There is no file"):
            run(LoadBasis, name=bad)


def test_the_name_says_what_is_erased_where_that_may_be_said(mini, bases, edited, monkeypatch):
    def name(node, **inputs):
        return Path(run(node, **inputs)[0]).name

    saved = [(SaveLoRA, {"model": edited}), (SaveCheckpoint, {"model": edited}), (SaveBasis, {"basis": bases[0]})]
    for node, wire in saved:
        assert "_miplo_0" in name(node, **wire)
        assert "_edit_0" in name(node, **wire, embed_recipe=False)
        monkeypatch.setattr(paths.args, "disable_metadata", True)
        assert "_edit_0" in name(node, **wire)
        monkeypatch.setattr(paths.args, "disable_metadata", False)
        assert "miplo" not in name(node, **wire, filename_prefix="mine/x")  # no word that was not asked for


@pytest.mark.parametrize(
    ("concepts", "word"),
    [
        (["Vincent van Gogh", "x"], "Vincent_van_Gogh"),
        (["初音ミク"], "初音ミク"),
        (["saber \\(fate\\)"], "saber_fate"),
        (["../../etc/passwd"], "etc_passwd"),
        (["a" * 90], "a" * 40),
        ([], "edit"),
        (["?!"], "edit"),
    ],
)
def test_a_concept_becomes_a_word_of_a_files_name(concepts, word):
    assert paths.named("loras/pure_%concept%", concepts, True) == f"loras/pure_{word}"
    assert paths.named("loras/pure", concepts, True) == "loras/pure"


@pytest.mark.parametrize("prefix", ["../out", "/etc/pure", "a/../../b", "", "loras/..", "a\0b"])
def test_a_prefix_stays_inside_the_output_folder(edited, prefix):
    with pytest.raises(PureError, match="inside ComfyUI's output folder"):
        save_lora(edited, filename_prefix=prefix)


@pytest.mark.parametrize("prefix", ["x" * 240, "\N{GRINNING FACE}" * 60, "\ud800", "a\ud800/b"])
def test_a_prefix_that_no_disk_takes_is_a_sentence(edited, prefix):
    with pytest.raises(PureError, match="filename_prefix"):
        save_lora(edited, filename_prefix=prefix)


def test_a_folder_that_is_deleted_before_the_save_is_made_again(edited, folders):
    save_lora(edited, filename_prefix="gone/x")
    shutil.rmtree(folders / "gone")
    assert Path(save_lora(edited, filename_prefix="gone/x")).exists()


@pytest.mark.parametrize("prefix", ["loras/twice", "loras/slash/", "loras/dot/.", "./loras//double"])
def test_an_existing_file_is_never_overwritten(edited, prefix):
    one = save_lora(edited, filename_prefix=prefix)
    before = Path(one).read_bytes()
    assert save_lora(edited, filename_prefix=prefix) != one
    assert Path(one).read_bytes() == before


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
    for layer in attention_sites(model):
        u, m = (torch.linalg.qr(torch.randn(layer.width, 5, generator=generator))[0] for _ in range(2))
        for part in ("keys", "values"):
            patches[layer.key(part)] = ProjectionAdapter(
                set(), (u, m, "left", json.dumps({"slabs": 2 * len(attention_sites(model))}), {})
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
