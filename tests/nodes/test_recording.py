"""What is recorded is softmax(Q K^T / sqrt(d)) V before to_out, of the conditional half, once per prompt, latent and
step."""

import weakref

import comfy.model_management
import comfy.samplers
import pytest
import torch
from pure_pack.nodes.host import recording, sampling
from pure_pack.nodes.host.sites import attention_sites, diffusion_model
from pure_pack.pure_core import build as pure_build
from pure_pack.pure_core.errors import PureError
from pure_pack.pure_core.projection import edit_matrix

from independent import independent_rows
from run_nodes import SMALL, build, capture, prompts


def hooks(model):
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.model.modules()
    )


@pytest.mark.parametrize(("which", "cfg"), [("mini", 1.0), ("mini", 4.0), ("wide", 1.0), ("wide", 3.0)])
def test_recorded_moments_equal_an_independent_computation(request, mini, which, cfg):
    model, clip = (mini[0] if which == "mini" else request.getfixturevalue("wide")), mini[1]
    anchors = prompts("zorbo\nmiplo", templates="{}\na picture of {}")
    got = capture((model, clip), anchors, cfg=cfg)
    want, halves = independent_rows(model, clip, anchors.pairs, SMALL["recorded_steps"], cfg=cfg)
    assert ([1, 0] in halves) == (cfg > 1)  # the unconditional half really ran, and first
    assert len(got.moments) == (7 if which == "mini" else 10)
    if which == "wide":
        assert {m.width for m in got.moments.values()} == {320, 640, 1280}
        assert {shape.heads for shape in got.shapes.values()} == {8}
    for name, moments in got.moments.items():
        h = want[name].double()
        assert moments.count == len(h) == 8
        second = h.T @ h
        assert (moments.factor.T @ moments.factor - second).norm() < 1e-5 * second.norm(), name
        assert (moments.sum - h.sum(0)).norm() < 1e-5 * h.sum(0).norm()
        if which == "wide":  # all heads are live
            assert h.view(len(h), 8, -1).norm(dim=(0, 2)).min() > 1e-3 * h.norm()


def test_what_comes_after_to_out_would_be_something_else(mini):
    """Control: attn2_output_patch fires after to_out, where the shapes agree and the rows do not."""
    model, _clip, _ = mini
    anchors = prompts("zorbo", templates="{}")
    got = capture(mini, anchors)
    after = {}
    name = next(iter(got.moments))
    handle = (
        diffusion_model(model)
        .get_submodule(f"{name}.to_out")
        .register_forward_hook(lambda m, a, out: after.setdefault("rows", []).append(out.mean(1)))
    )
    try:
        capture(mini, anchors)
    finally:
        handle.remove()
    h = torch.cat(after["rows"]).double()
    own = got.moments[name]
    assert h.shape[1] == own.width
    assert (own.sum - h.sum(0)).norm() > 0.1 * own.sum.norm()


def difference(a, b):
    """Largest relative difference of the edits of two bases."""
    return max(
        float(
            (edit_matrix(a.sites[n].u, a.sites[n].m) - edit_matrix(b.sites[n].u, b.sites[n].m)).norm()
            / (edit_matrix(a.sites[n].u, a.sites[n].m) - torch.eye(a.shapes[n].width)).norm()
        )
        for n in a.sites
    )


def test_batch_size_changes_nothing_beyond_rounding(mini):
    few = {"templates": "{}\na picture of {}\na drawing of {}"}

    def basis(size, seed=0):
        forget, retain = (
            capture(mini, p, batch_size=size, seeds=2, seed=seed)
            for p in (prompts("miplo", **few), prompts("zorbo\nbramby", "retain", **few))
        )
        return build(forget, retain, max_rank=1)

    one, four, sixteen = (basis(n) for n in (1, 4, 16))
    assert difference(one, four) < 1e-3
    assert difference(one, sixteen) < 1e-3
    assert difference(one, basis(16, seed=5)) > 1e-2  # control: other noise, other basis


def test_prompts_of_different_lengths_are_captured_together(mini):
    long = " ".join(["a picture of zorbo at night"] * 20)  # more than 77 tokens: two chunks
    both = capture(mini, prompts(f"zorbo\n{long}", kind="free text"), batch_size=4)
    alone = [capture(mini, prompts(p, kind="free text")) for p in ("zorbo", long)]
    for name, m in both.moments.items():
        total = sum(a.moments[name].sum for a in alone)
        assert m.count == 4
        assert (m.sum - total).norm() < 1e-5 * total.norm()


def test_a_capture_is_its_forward_passes_and_one_transfer_a_step(mini, monkeypatch):
    """Each prompt, and the empty one, is encoded once, whatever the seeds; no unconditional half at cfg 1.

    No step after the last that is recorded.
    """
    model, clip = mini[:2]
    unet, moved, texts, halves, evaluated = diffusion_model(model), [], [], [], []

    class Counted:
        tokenize = staticmethod(lambda text: texts.append(text) or clip.tokenize(text))
        encode_from_tokens_scheduled = staticmethod(clip.encode_from_tokens_scheduled)

    def cpu(tensor, original=torch.Tensor.cpu):
        moved.append(tuple(tensor.shape))
        return original(tensor)

    anchors, width = (
        prompts("zorbo\nmiplo", templates="{}\na picture of {}"),
        sum(layer.width for layer in attention_sites(model)),
    )
    monkeypatch.setattr(torch.Tensor, "cpu", cpu)
    handle = unet.register_forward_pre_hook(
        lambda _, a, kw: (
            halves.append(list(kw["transformer_options"]["cond_or_uncond"])),
            evaluated.append(len(a[0])),
        )[0],
        with_kwargs=True,
    )
    try:
        capture((model, Counted), anchors, seeds=2, batch_size=4, steps=4, recorded_steps=3)
        lone, runs, transfers = sorted(texts), list(halves), [s for s in moved if s[1:] == (width,)]
        capture((model, clip), anchors, seeds=2, batch_size=4, steps=4, recorded_steps=3, cfg=3.0)
    finally:
        handle.remove()
    assert lone == sorted(["", *(text for _, text in anchors.pairs)])
    # 4 prompts x 2 seeds in batches of 4, 3 steps each
    assert runs == [[0]] * (2 * 3)
    assert transfers == [(4, width)] * (2 * 3)
    assert [1, 0] in halves  # control: at cfg 3 the unconditional half runs
    said = [sampling.Trajectory(4, 3, 2, 0, cfg, 64, 64, "euler", "normal", 4).evaluations(4) for cfg in (1.0, 3.0)]
    assert [sum(evaluated[:6]), sum(evaluated[6:])] == said == [24, 48]  # what the report says it costs


def test_more_prompts_than_are_encoded_at_once_give_the_same_and_no_more_is_held(mini, monkeypatch):
    model, clip = mini[:2]
    texts, alive, held = [], [], []

    class Watched:
        tokenize = staticmethod(lambda text: texts.append(text) or clip.tokenize(text))

        @staticmethod
        def encode_from_tokens_scheduled(tokens):
            entries = clip.encode_from_tokens_scheduled(tokens)
            alive.append(weakref.ref(entries[0][0]))
            return entries

    anchors = prompts("zorbo\nmiplo\ndorrit\ntarnik", templates="{}\na picture of {}")
    handle = diffusion_model(model).register_forward_pre_hook(
        lambda *_: held.append(sum(ref() is not None for ref in alive))
    )
    try:
        whole = capture((model, Watched), anchors)
        assert max(held) == 9  # control: eight prompts and the empty one
        held.clear(), texts.clear(), alive.clear()
        monkeypatch.setattr(recording, "ENCODED", 3)
        parts = capture((model, Watched), anchors)
    finally:
        handle.remove()
    assert max(held) == 4
    assert sorted(texts) == sorted(["", *(text for _, text in anchors.pairs)])
    assert (parts.anchors, parts.rows, parts.model) == (whole.anchors, whole.rows, whole.model)
    assert parts.count == whole.count
    assert all((parts.sums[n] - whole.sums[n]).norm() < 1e-5 * whole.sums[n].norm() for n in parts.sums)
    for name, m in parts.moments.items():
        assert (m.second_moment() - whole.moments[name].second_moment()).norm() < 1e-5 * whole.moments[
            name
        ].second_moment().norm()


def test_latent_j_depends_on_seed_and_j_alone(mini):
    one, three = (sampling.start_noise(mini[0], 7, n, 64, 64) for n in (1, 3))
    assert torch.equal(one[0], three[0])
    assert not torch.equal(three[0], three[1])
    assert torch.equal(one, torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)))


def test_no_hook_is_left_after_success_exception_or_cancel(mini, monkeypatch):
    model = mini[0]
    before, patches, options = hooks(model), {k: list(v) for k, v in model.patches.items()}, repr(model.model_options)
    base = {
        layer.key("values"): model.get_key_patches(layer.key("values"))[layer.key("values")][0][0].clone()
        for layer in attention_sites(model)
    }
    during = []

    def check():
        assert hooks(model) == before
        assert model.patches == patches
        assert repr(model.model_options) == options
        assert all(torch.equal(model.get_key_patches(k)[k][0][0], w) for k, w in base.items())

    capture(mini, prompts("zorbo"))
    check()

    def fail(self):
        during.append(hooks(model))
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patch:
        patch.setattr(recording.Pool, "rows", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            capture(mini, prompts("zorbo"))
    check()
    assert during[0] == before + 1 + 7  # control: they were there while it ran

    def cancel(self, *_):
        comfy.model_management.interrupt_current_processing()
        comfy.model_management.throw_exception_if_processing_interrupted()

    with monkeypatch.context() as patch:
        patch.setattr(recording.Progress, "step", cancel)
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            capture(mini, prompts("zorbo"))
    check()
    assert not comfy.model_management.processing_interrupted()


def test_a_cancel_while_a_basis_is_built_answers_before_the_next_layer(mini, monkeypatch):
    forget, retain = capture(mini, prompts("zorbo")), capture(mini, prompts("miplo", role="retain"))
    original, built = pure_build.build_site, []

    def build_site(*args):
        built.append(original(*args))
        comfy.model_management.interrupt_current_processing()
        return built[-1]

    monkeypatch.setattr(pure_build, "build_site", build_site)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        build(forget, retain)
    assert len(built) == 1
    assert not comfy.model_management.processing_interrupted()
    monkeypatch.undo()
    assert len(build(forget, retain).sites) == 7  # control


def test_a_bypassed_layer_is_an_error_and_not_a_smaller_result(mini, monkeypatch):
    unet = diffusion_model(mini[0])
    name = attention_sites(mini[0])[2].name
    layer = unet.get_submodule(name)
    monkeypatch.setattr(layer, "forward", lambda x, context=None, value=None, mask=None, transformer_options={}: x)
    with pytest.raises(PureError, match=r"gave 0 recordings and not 12.*TorchCompile"):
        capture(mini, prompts("zorbo"))


def test_a_schedule_of_another_length_is_refused_before_a_step_is_run(mini, monkeypatch):
    monkeypatch.setattr(type(mini[0].model), "apply_model", lambda *a, **k: pytest.fail("a step was run"))
    with pytest.raises(PureError, match="ddim_uniform gives 31 steps where 30 are asked for"):
        capture(mini, prompts("zorbo"), scheduler="ddim_uniform", steps=30)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"sampler_name": "euler_ancestral"}, "draws noise"),
        ({"sampler_name": "heun"}, "evaluates twice"),
        ({"sampler_name": "nonsense"}, "'nonsense'"),
        ({"scheduler": "nonsense"}, "scheduler must be one of"),
        ({"steps": 2, "recorded_steps": 3}, "recorded_steps must be"),
        ({"cfg": float("nan")}, "cfg must be"),
    ],
)
def test_trajectories_that_cannot_be_recorded_are_refused_before_any_work(mini, monkeypatch, inputs, words):
    monkeypatch.setattr(recording, "encode_empty", lambda *a: pytest.fail("work was done"))
    with pytest.raises(PureError, match=words):
        capture(mini, prompts("zorbo"), **inputs)


@pytest.mark.parametrize("name", sampling.SAMPLERS)
def test_every_offered_sampler_gives_one_row_a_step(mini, name):
    assert capture(mini, prompts("zorbo", templates="{}"), sampler_name=name, recorded_steps=3).count == 3


def test_replaced_attention_is_refused(mini):
    model = mini[0].clone()
    model.set_model_attn2_patch(lambda q, k, v, options: (q, k, v))
    with pytest.raises(PureError, match="already replaced"):
        capture((model, mini[1]), prompts("zorbo"))
    model = mini[0].clone()
    model.set_model_attn2_replace(lambda q, k, v, options: q, "input", 1)
    with pytest.raises(PureError, match="IPAdapter"):
        capture((model, mini[1]), prompts("zorbo"))


def test_models_that_cannot_be_edited_are_refused_by_family(mini):
    class Flux:
        diffusion_model = torch.nn.Sequential(torch.nn.Linear(2, 2))
        diffusion_model.input_blocks = diffusion_model.middle_block = diffusion_model.output_blocks = (
            torch.nn.ModuleList()
        )

    with pytest.raises(PureError, match=r"\(Flux\) has no attention to text that PURE knows"):
        attention_sites(type("Patcher", (), {"model": Flux()})())
    packed = torch.nn.Module()
    block = torch.nn.Module()
    block.attn2 = torch.nn.Module()
    packed.middle_block = torch.nn.ModuleList([block])
    block.attn2.heads = 2
    for part in ("to_q", "to_k", "to_v"):
        block.attn2.add_module(part, torch.nn.Linear(4, 4, bias=False))
    block.attn2.add_module("to_out", torch.nn.Sequential(torch.nn.Linear(4, 4)))
    holder, lotus = (
        type("Patcher", (), {"model": type(name, (), {"diffusion_model": packed})()})() for name in ("SDXL", "Lotus")
    )
    with pytest.raises(PureError, match=r"\(Lotus\) is not asked in text"):
        attention_sites(lotus)
    assert [layer.width for layer in attention_sites(holder)] == [4]  # control
    block.attn2.to_k.weight = torch.nn.Parameter(torch.zeros(4, 4, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(PureError, match=r"packed \(uint8\)"):
        attention_sites(holder)
    block.attn2.to_k = torch.nn.Module()  # as nunchaku's, which has a qweight and no weight
    with pytest.raises(PureError, match=r"packed \(no weight at all\)"):
        attention_sites(holder)


def test_activations_that_overflow_are_refused(mini, monkeypatch):
    original = recording.Pool.see
    monkeypatch.setattr(recording.Pool, "see", lambda self, site, h: original(self, site, h * float("inf")))
    with pytest.raises(PureError, match="NaN or infinite"):
        capture(mini, prompts("zorbo", templates="{}"))
