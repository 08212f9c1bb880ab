"""On a GPU: what is captured, edited and drawn there is what the CPU computes, and nothing is left behind.

`nox -s gpu` runs it on an NVIDIA card. In the other runs the device is the CPU, where equal precision makes it easy.
"""

import comfy.model_management as management
import pytest
import torch
from pure_pack.nodes.host import weights
from pure_pack.nodes.host.sites import attention_sites, diffusion_model
from pure_pack.pure_core.projection import edit_matrix

import random_models
from benchmarks import gpu
from random_transformers import RandomText, load_transformer
from run_nodes import apply, build, capture, no_room_for, prompts

DEVICE = management.get_torch_device()
ON_GPU = DEVICE.type == "cuda"
CPU = torch.device("cpu")
# Stored dtype: how far a capture may be from the CPU's in float32 (convolutions on a GPU round to ten bits), and half a
# unit in the last place.
DTYPES = {
    torch.float32: (3e-3, 2**-24),
    torch.float16: (2e-2, 2**-11),
    torch.bfloat16: (0.1, 2**-8),
    torch.float8_e4m3fn: (0.1, 2**-4),
}
FAMILIES = ("Wan t2v", "PixArt sigma", "SD 3", "Flux.1")  # cross- and joint attention, apart and fused
FORGET, KEEP = "one thing\nanother", "something else\nand more\nyet more of it"
STEPS = {"steps": 4, "recorded_steps": 2}
QUEUES = {torch.float16: 50} if ON_GPU else {}  # of one dtype; a few of the others
FEW = 6 if ON_GPU else 3


def sides(model, clip, **inputs):
    """What to forget and to keep, captured."""
    return [
        capture((model, clip), prompts(text, role, templates="{}"), **{**STEPS, **inputs})
        for text, role in ((FORGET, "forget"), (KEEP, "retain"))
    ]


def distance(a, b) -> float:
    """Largest relative difference of two captures' second moments over the sites."""
    pairs = [(a.moments[name].second_moment(), b.moments[name].second_moment()) for name in a.moments]
    return max(float((x - y).norm() / y.norm()) for x, y in pairs)


def on_cpu(model):
    """A MODEL, to run on the CPU; the host may have loaded it onto the card at once."""
    management.unload_all_models()
    model.load_device = CPU
    return model


def draw(model, clip):
    """Latents of one prompt."""
    import comfy.sample

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in ("one thing", ""))
    return comfy.sample.sample(
        model, noise, 3, 2.0, "euler", "normal", positive, negative, torch.zeros_like(noise), disable_pbar=True, seed=5
    )


def state_of(model) -> dict[str, torch.Tensor]:
    """The MODEL's own weights, copied, as they are when nothing is loaded."""
    management.unload_all_models()
    return {name: value.to(CPU, copy=True) for name, value in model.model.state_dict().items()}


def changed(before, after) -> list[str]:
    return [
        name
        for name, value in before.items()
        if not torch.equal(value.view(torch.uint8), after[name].view(torch.uint8))
    ]


def hooks(model) -> int:
    parts = diffusion_model(model).modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in parts)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def unet(request):
    """A small SD 2 MODEL kept in a dtype, its float32 twin on the CPU, a CLIP, and the dtype."""
    dtype = request.param
    state = {k: v.to(dtype) for k, v in random_models.random_state("sd2").items()}
    with torch.inference_mode():
        model = random_models.load(state, dtype)
        twin = on_cpu(random_models.load({k: v.float() for k, v in state.items()}))
    assert model.load_device == DEVICE
    return model, twin, random_models.clip_of(model), dtype


@pytest.fixture(scope="module")
def edited(unet):
    model, _, clip, _ = unet
    with torch.inference_mode():
        basis = build(*sides(model, clip))
        return apply(model, basis, weights="values"), basis


def test_a_capture_is_the_cpus_to_the_precision(unet):
    model, twin, clip, dtype = unet
    there, here = sides(model, clip), sides(twin, clip)
    for got, want in zip(there, here, strict=True):
        assert distance(got, want) < DTYPES[dtype][0]
    assert distance(there[0], here[1]) > DTYPES[dtype][0]  # control: other prompts


def test_the_edit_is_on_the_device_and_the_weights_come_back_bit_by_bit(unet, edited):
    model, _, _, dtype = unet
    changed_model, basis = edited
    before = state_of(model)
    management.load_models_gpu([changed_model])
    for site in attention_sites(model):
        key, edit = site.key("values"), basis.sites[site.name]
        held = model.model.get_submodule(key.removesuffix(".weight")).weight
        assert held.device.type == DEVICE.type
        base = weights.effective_weight(model, key).double()
        exact = edit_matrix(edit.u.double(), edit.m.double()) @ base
        rounding = (2 * DTYPES[dtype][1] + 1e-3) * exact.norm()  # newer hosts compute patches in fp16 on NVIDIA
        left = held.to(CPU, torch.float64) - exact
        assert left.norm() < rounding
        taken = edit.m.double().T @ (base - exact)
        assert (edit.m.double().T @ left).norm() < 0.5 * taken.norm()  # it is edited, whatever rounding puts back
    assert changed(before, state_of(model)) == []


def test_weights_that_do_not_fit_are_edited_as_they_are_used(unet, edited):
    model, _, clip, dtype = unet
    whole, original, before = draw(edited[0], clip), draw(model, clip), state_of(model)
    with no_room_for(model) as counted:
        part = draw(edited[0], clip)
    assert max(counted) > 0  # control
    assert torch.isfinite(part).all()
    if dtype.itemsize > 1:  # fp8: patched as they are used, weights are not rounded again
        rounding = 2 * DTYPES[dtype][1] * whole.norm()
        assert (part - whole).norm() < 0.05 * (whole - original).norm() + rounding
        assert (whole - original).norm() > 2 * rounding  # control
    assert changed(before, state_of(model)) == []


def test_cancelled_in_mid_capture_nothing_is_left(unet, monkeypatch):
    from pure_pack.nodes.host import recording

    model, _, clip, _ = unet
    before, first = state_of(model), draw(model, clip)

    def stop(*_args, **_kwargs):
        management.interrupt_current_processing(True)

    with monkeypatch.context() as patch:
        patch.setattr(recording.Progress, "step", stop)
        with pytest.raises(management.InterruptProcessingException):
            sides(model, clip)
    assert hooks(model) == 0
    assert torch.equal(draw(model, clip), first)
    assert changed(before, state_of(model)) == []


def test_queues_do_not_fill_the_memory(unet):
    model, _, clip, dtype = unet

    def queue(i):
        found = sides(model, clip, seed=i)
        draw(apply(model, build(*found), weights="values"), clip)
        management.unload_all_models()
        return torch.cuda.memory_allocated() if ON_GPU else 0

    held = [queue(i) for i in range(QUEUES.get(dtype, FEW))]
    assert max(held[2:]) - held[1] < 2**20


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_are_captured_and_edited_there_as_on_the_cpu(family):
    model, clip = load_transformer(family, device=DEVICE), RandomText(family)
    twin = load_transformer(family)
    size = {"width": 272, "height": 272} if "PixArt" in family else {}
    there, here = (sides(m, clip, scheduler="simple", **size) for m in (model, twin))
    for got, want in zip(there, here, strict=True):
        assert distance(got, want) < 1e-2
    assert distance(there[0], here[1]) > 1e-2  # control
    before = state_of(model)
    basis = build(*there)
    changed_model = apply(model, basis, weights="values")
    management.load_models_gpu([changed_model])
    site = attention_sites(model)[0]
    key = site.key("values")
    held = dict(model.model.named_parameters())[key].to(CPU, torch.float64)
    exact = weights.effective_weight(changed_model, key).double()
    assert (held - exact).norm() < 1e-3 * exact.norm()
    assert (weights.effective_weight(model, key) - exact).norm() > 2e-3 * exact.norm()  # control
    assert changed(before, state_of(model)) == []


def test_the_benchmark_measures_whole_and_its_table_has_it_all():
    found = gpu.measured(gpu.KINDS["Wan t2v, 4 blocks"], small=True)
    assert (found["MB"]["sampling"] > 0) == ON_GPU
    assert min(found["seconds"].values()) > 0
    text = gpu.table("a card", {"Wan": found})
    assert f"| Wan | {found['capture / the same sampling'][0]:.3f} [" in text
    assert f"| LoRA | {found['seconds']['LoRA']:.2f} |" in text
