"""Quantised weights, as hosts keep them today (QuantizedTensor) and as they did before: from a capture to a file, or to
a refusal that says where to go. Each kind that the host at hand can make on a CPU."""

import json

import comfy.model_management
import comfy.ops
import comfy.quant_ops
import comfy.sd
import comfy.utils
import pytest
import torch
from pure_pack.nodes.export import SaveCheckpoint, SaveLoRA
from pure_pack.nodes.host import identity, precision
from pure_pack.nodes.host.patches import edits_of
from pure_pack.nodes.host.sites import attention_sites
from pure_pack.nodes.host.weights import base_weight, effective_weight, is_quantised, stored_dtype
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.projection import edit_matrix
from safetensors.torch import save_file

from mini_sd import dit_layout
from random_transformers import Random, RandomText
from run_nodes import apply, build, capture, output_in, prompts, run

F8 = torch.float8_e4m3fn
MADE = {  # by newer hosts: dtype of the codes, largest relative error of a weight
    "mxfp8": (torch.float8_e4m3fn, 2**-4),
    "nvfp4": (torch.uint8, 2**-2),
    "int8_tensorwise": (torch.int8, 2**-4),
    "int8_tensorwise convrot": (torch.int8, 2**-4),
}
FORMS = ["now", "before", *(form for form in MADE if form.split()[0] in comfy.quant_ops.QUANT_ALGOS)]
WRITES_KINDS = hasattr(comfy.ops, "_quantized_weight_state_dict")  # newer hosts do
STEPS = {"steps": 4, "recorded_steps": 2, "scheduler": "simple"}


class Text(RandomText):
    """Random conditionings of the width that the miniature transformer takes."""

    def __init__(self):
        super().__init__("Wan t2v")
        self.row = Random("WAN21_T2V", {}, context=4096)


def quantised(form: str, dtype=F8) -> tuple[dict, dict]:
    """The miniature transformer's state with its linear weights in fp8, and the file's metadata."""
    state, layers = {} if form == "now" else {"scaled_fp8": torch.empty(0, dtype=dtype)}, {}
    for key, weight in dit_layout.full_state("wan").items():
        layer = key.removesuffix(".weight")
        if layer == key or weight.dim() != 2 or not ("attn" in key or "ffn" in key):
            state[key] = weight.half()
            continue
        if form in MADE:
            state |= codes(layer, weight.float(), form)
            continue
        scale = weight.float().abs().max() / torch.finfo(dtype).max
        state[key] = (weight.float() / scale).to(dtype)
        state[f"{layer}.{'weight_scale' if form == 'now' else 'scale_weight'}"] = scale.reshape(())
        layers[layer] = {"format": "float8_e4m3fn"}
    kept = json.dumps({"format_version": "1.0", "layers": layers})
    return state, {"_quantization_metadata": kept} if form == "now" else {}


def codes(layer: str, weight: torch.Tensor, form: str) -> dict[str, torch.Tensor]:
    """A layer's weight in a form of newer hosts, by their own quantisation."""
    name, *rotated = form.split()
    told = {"convrot": True, "convrot_groupsize": 64, "per_channel": True} if rotated else {}
    layout = comfy.quant_ops.QUANT_ALGOS[name]["comfy_tensor_layout"]
    made = comfy.quant_ops.QuantizedTensor.from_float(weight, layout, scale="recalculate", **told)
    kind = json.dumps({"format": name, **told}).encode()
    return {**made.state_dict(f"{layer}.weight"), f"{layer}.comfy_quant": torch.tensor(list(kind), dtype=torch.uint8)}


def loaded(folder, form, dtype=F8):
    state, metadata = quantised(form, dtype)
    path = folder / f"{form}.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, path, metadata=metadata or None)
    with torch.inference_mode():  # as the host's executor loads
        return comfy.sd.load_diffusion_model(str(path))


@pytest.fixture(scope="module", params=FORMS)
def case(request, tmp_path_factory):
    """The form, a MODEL in it, and a basis that was captured on it."""
    model, text = loaded(tmp_path_factory.mktemp("fp8"), request.param), Text()
    sides = (("one thing\nanother", "forget"), ("something else\nand more\nyet more", "retain"))
    with torch.inference_mode():
        forget, keep = (capture((model, text), prompts(p, role, templates="{}"), **STEPS) for p, role in sides)
        return request.param, model, build(forget, keep, keep_weight=3.0)


def test_weights_are_read_as_what_they_stand_for(case):
    form, model, _ = case
    truth = dit_layout.full_state("wan")
    for site in attention_sites(model):
        key = site.key("values")
        assert is_quantised(base_weight(model, key)) or form == "before"  # which newer hosts read as theirs of today
        dtype, most = MADE.get(form, (F8, 2**-4))  # fp8 has three bits behind the point
        assert stored_dtype(base_weight(model, key)) == dtype
        want = truth[key.removeprefix("diffusion_model.")].float()
        error = (effective_weight(model, key) - want).norm() / want.norm()
        assert 0 < error < most


def test_a_fingerprint_tells_other_weights_and_is_the_same_twice(case, tmp_path):
    form, model, basis = case
    sites = attention_sites(model)
    with torch.inference_mode():
        assert identity.weights_digest(model, sites) == basis.model.weights
        again = loaded(tmp_path, form)
        assert identity.weights_digest(again, attention_sites(again)) == basis.model.weights
        other = model.clone()
        other.add_patches({sites[0].key("values"): (torch.ones(sites[0].width, 1),)})
        assert identity.weights_digest(other, sites) != basis.model.weights  # control


def test_the_edit_is_what_the_host_then_samples_with_but_for_its_rounding(case):
    form, model, basis = case
    with torch.inference_mode():
        before = {k: base_weight(model, k).clone() for k in [s.key("values") for s in attention_sites(model)]}
        edited = apply(model, basis, weights="values")
        found = precision.residual(edited)
        assert found.dtype == str(MADE.get(form, (F8,))[0]).removeprefix("torch.")
        assert 0.005 < found.mean < (1 if form == "nvfp4" else 0.3)
        site = attention_sites(model)[0]
        edit, key = basis.sites[site.name], site.key("values")
        e = edit_matrix(edit.u.double(), edit.m.double())
        want = e @ effective_weight(model, key).double()
        exact = effective_weight(edited, key).double()
        assert (exact - want).norm() < 1e-5 * want.norm()
        comfy.model_management.load_model_gpu(edited)
        held, kept = held_by_the_module(edited, key), precision.kept_weight(model, key, exact.float())
        comfy.model_management.load_model_gpu(model)
        assert (held - kept).norm() < 1e-3 * kept.norm()  # the residual is of what the host really keeps
        assert (held - held_by_the_module(model, key)).norm() > 0.01 * kept.norm()  # control: it is edited
        for key, weight in before.items():
            now = base_weight(model, key)
            same = torch.equal(now._qdata, weight._qdata) if is_quantised(now) else torch.equal(now, weight)
            assert same, key


def held_by_the_module(model, key):
    """What a weight is worth in the module as it is loaded now, in float32."""
    module, _, name = key.rpartition(".")
    owner = model.model.get_submodule(module)
    return owner.convert_weight(getattr(owner, name).clone()).float()


def test_its_lora_is_the_edit_and_a_checkpoint_is_right_or_refused(case, tmp_path):
    _, model, basis = case
    with torch.inference_mode(), output_in(tmp_path):
        edited = apply(model, basis, weights="values")
        path = run(SaveLoRA, model=edited, filename_prefix="lora")[0]
        lora = comfy.utils.load_torch_file(path)
        again, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
        for key in edits_of(edited):
            want, got = (effective_weight(m, key) for m in (edited, again))
            assert (got - want).norm() < 2e-3 * want.norm()
        if is_quantised(base_weight(model, attention_sites(model)[0].key("values"))) and not WRITES_KINDS:
            with pytest.raises(PureError, match="Save the edit with PURE Save LoRA instead"):
                run(SaveCheckpoint, model=edited, filename_prefix="whole")
            assert not list(tmp_path.glob("whole*"))
            return
        again = comfy.sd.load_diffusion_model(run(SaveCheckpoint, model=edited, filename_prefix="whole")[0])
        for key in [key for key in edits_of(edited) if key.endswith("weight")]:
            kept = precision.kept_weight(model, key, effective_weight(edited, key))
            assert (effective_weight(again, key) - kept).norm() < 1e-3 * kept.norm()
            assert (effective_weight(model, key) - kept).norm() > 0.01 * kept.norm()  # control


def test_an_edit_that_overflows_its_storage_is_refused(case, monkeypatch):
    _, model, basis = case
    with torch.inference_mode():
        edited = apply(model, basis, weights="values")
        monkeypatch.setattr(precision, "kept_weight", lambda model, key, weight: weight * float("inf"))
        with pytest.raises(PureError, match="they overflow"):
            precision.residual(edited)
