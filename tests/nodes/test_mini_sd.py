"""The laid-out checkpoint, loaded by the host, computes what the narrow model computes."""

import comfy.model_management
import torch
from torch.testing import assert_close

from mini_sd import studio
from run_nodes import whole_clip

TIGHT = 1e-4
TEXTS = [
    "zorbo at night",
    "a golden round critter with blushing cheeks, pointed ears and two eyes",
    "a red circle by vornak",
    "",
]


def test_the_hosts_tokenizer_gives_the_stored_ids(mini):
    for text in TEXTS:
        tokens = [t for t, _ in mini[1].tokenize(text)["l"][0]]
        assert tokens == studio.padded_ids(text)


def test_the_text_encoder_agrees(mini):
    whole = whole_clip(mini[1])
    for text in TEXTS:
        full, quick = (clip.encode_from_tokens_scheduled(clip.tokenize(text))[0] for clip in (whole, mini[1]))
        assert_close(quick, full, rtol=0, atol=0)
        full = full[0]
        narrow = studio.encode_text([text])
        assert_close(full[..., : narrow.shape[-1]], narrow, rtol=0, atol=TIGHT)
        assert full[..., narrow.shape[-1] :].abs().max() == 0
    assert (studio.encode_text(TEXTS[:1]) - studio.encode_text(TEXTS[1:2])).abs().max() > 0.1  # control


def test_the_unet_agrees(mini):
    model, narrow = mini[0], studio.unet()
    comfy.model_management.load_models_gpu([model])  # the shared module may still hold an edited clone's weights
    x, context = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), studio.encode_text(TEXTS[:2])
    wide_context = torch.nn.functional.pad(context, (0, 768 - context.shape[-1]))
    for step in (3, 500, 990):
        full = model.model.diffusion_model.float()(x, torch.full((2,), step), context=wide_context)
        got = narrow(x, torch.full((2,), step), context)
        assert_close(full, got, rtol=0, atol=TIGHT)
    assert (narrow(x, torch.full((2,), 990), context.flip(0)) - got).abs().max() > 0.01  # control: the text matters


def test_the_autoencoder_agrees_both_ways(mini):
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    full = mini[2].decode(z / 0.18215)  # the host keeps latents unscaled
    assert_close(full.permute(0, 3, 1, 2), studio.vae_decoder()(z).clamp(0, 1), rtol=0, atol=TIGHT)
    picture = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(3))
    assert_close(
        mini[2].encode(picture) * 0.18215, studio.vae_encoder()(picture.permute(0, 3, 1, 2)), rtol=0, atol=TIGHT
    )


def test_host_and_narrow_draw_the_same_pictures_with_and_without_an_edit(mini):
    import nodes as host_nodes

    from benchmarks.erasers import narrow
    from run_nodes import apply, build, capture, prompts

    model, clip, vae = mini
    basis = build(capture(mini, prompts("miplo")), capture(mini, prompts("zorbo\nbramby", "retain")))

    def encode(t):
        return clip.encode_from_tokens_scheduled(clip.tokenize(t))

    pictures = {}
    for name, patched in (
        ("original", model),
        ("keys and values", apply(model, basis)),
        ("output", apply(model, basis, weights="output")),
    ):
        drawn = studio.draw(studio.unet(narrow(patched)), ["miplo at night"], [11], steps=5)
        latent = host_nodes.common_ksampler(
            patched,
            11,
            5,
            4.0,
            "euler",
            "normal",
            encode("miplo at night"),
            encode(""),
            {"samples": torch.zeros(1, 4, 8, 8)},
        )[0]["samples"]
        pictures[name] = vae.decode(latent).permute(0, 3, 1, 2)
        assert_close(pictures[name], drawn, rtol=0, atol=5e-3)
    for name in ("keys and values", "output"):
        assert (pictures["original"] - pictures[name]).abs().max() > 0.1  # control: the edit shows
