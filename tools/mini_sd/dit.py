"""Three narrow diffusion transformers, instances of the host's own classes, and how they lie in its full layouts:
cross-attention in Wan t2v's, joint attention in Stable Diffusion 3's, one stream in Z-Image's (of another width).

Their text encoder, and their latents, are those of the miniature Stable Diffusion, frozen.
"""

from __future__ import annotations

import inprocess

inprocess.start()  # before anything of comfy is imported

import comfy.ldm.lumina.model
import comfy.ldm.modules.diffusionmodules.mmdit
import comfy.ldm.wan.model
import comfy.ops
import torch
import torch.nn as nn
from comfy.ldm.lumina.model import NextDiT
from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper
from comfy.ldm.wan.model import WanModel, WanT2VCrossAttention

from . import studio
from .layout import put

WIDTH, TEXT, TEXT_FULL = 256, 128, 4096
LIVE, LATENT = 4, 16
WAN_CHANNELS = [1, 4, 11, 13]  # of the host's 16: least spread, so that a decoder's tanh(x / 3) does not clip them
SD3_CHANNELS = [0, 1, 2, 3]
WAN_LAYERS, WAN_FFN = 6, 512
SD3_DEPTH, SD3_MLP = 4, 384  # of 1024
ZIMAGE = {
    "dim": WIDTH,
    "n_heads": 4,
    "n_layers": 6,
    "n_refiner_layers": 1,
    "axes_dims": (16, 24, 24),
    "axes_lens": (300, 512, 512),
    "multiple_of": 64,
    "ffn_dim_multiplier": 1.5,
    "qk_norm": True,
    "z_image_modulation": True,
    "time_scale": 1000.0,
}  # NextDiT's arguments; the host knows this layout in two widths alone, 2304 and 3840


def attend(q, k, v, heads, **_):
    """What the host's optimized_attention computes; its backward pass is several times faster on a CPU."""
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) if t.dim() == 3 else t.transpose(1, 2) for t in (q, k, v))
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)


def attend_heads(q, k, v, heads, mask=None, **_):
    """The same, of (batch, heads, tokens, width of a head)."""
    return attend(*(t.transpose(1, 2) for t in (q, k, v)), heads)


def train_on_a_cpu() -> None:
    """Only in a process that trains: the host's transformers with the attention above."""
    comfy.ldm.wan.model.optimized_attention = attend
    comfy.ldm.modules.diffusionmodules.mmdit.optimized_attention = attend
    comfy.ldm.lumina.model.optimized_attention_masked = attend_heads


class SharedText(WanT2VCrossAttention):
    """The host's cross-attention, for a batch in which r consecutive pictures share a caption.

    The same numbers, with keys and values made once per caption.
    """

    def forward(self, x, context, transformer_options=None, **kwargs):
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(context)), self.v(context)
        y = comfy.ldm.wan.model.optimized_attention(
            q.reshape(len(context), -1, q.shape[-1]), k, v, heads=self.num_heads
        )
        return self.o(y.reshape(x.shape))


def wan() -> WanModel:
    net = WanModel(
        in_dim=LIVE,
        out_dim=LIVE,
        dim=WIDTH,
        ffn_dim=WAN_FFN,
        text_dim=TEXT,
        num_heads=WIDTH // 128,
        num_layers=WAN_LAYERS,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    initialise(net)
    for block in net.blocks:
        block.cross_attn.__class__ = SharedText
        with torch.no_grad():
            block.modulation[0, [2, 5]] += 1  # gates open
    for last in (net.head.head, net.time_projection[1]):
        nn.init.zeros_(last.weight)
    return net


def sd3() -> OpenAISignatureMMDITWrapper:
    net = OpenAISignatureMMDITWrapper(
        input_size=None,
        in_channels=LIVE,
        depth=SD3_DEPTH,
        mlp_ratio=SD3_MLP / (64 * SD3_DEPTH),
        qk_norm="rms",
        context_embedder_config={
            "target": "torch.nn.Linear",
            "params": {"in_features": TEXT, "out_features": 64 * SD3_DEPTH},
        },
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
    )
    initialise(net)
    for name, m in net.named_modules():
        if name.endswith("adaLN_modulation"):
            nn.init.zeros_(m[1].weight)
            parts = m[1].bias.data.view(-1, 64 * SD3_DEPTH)
            if len(parts) == 6:
                parts[[2, 5]] = 1.0  # gates open
    nn.init.zeros_(net.final_layer.linear.weight)
    return net


def zimage() -> NextDiT:
    net = NextDiT(
        in_channels=LIVE,
        cap_feat_dim=TEXT,
        dtype=torch.float32,
        device="cpu",
        operations=comfy.ops.disable_weight_init,
        **ZIMAGE,
    )
    initialise(net)
    for block in (*net.layers, *net.noise_refiner):
        last = block.adaLN_modulation[-1]
        nn.init.zeros_(last.weight)
        last.bias.data.view(4, -1)[[1, 3]] = 1.0  # gates open
    nn.init.zeros_(net.final_layer.linear.weight)
    return net


@torch.no_grad()
def initialise(net: nn.Module) -> None:
    """The host's modules come with whatever was in memory."""
    for name, p in net.named_parameters():
        if "modulation" in name and p.dim() == 3:
            p.normal_(std=0.02)
        elif p.dim() == 1:
            p.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            nn.init.xavier_uniform_(p.view(p.shape[0], -1))
    for embed in [m for n, m in net.named_modules() if n in ("time_embedding", "t_embedder.mlp")]:
        embed[0].weight.normal_(std=0.02)
        embed[2].weight.normal_(std=0.02)


BUILD = {"wan": wan, "sd3": sd3, "zimage": zimage}
LIVE_CHANNELS = {"wan": WAN_CHANNELS, "sd3": SD3_CHANNELS, "zimage": SD3_CHANNELS}
UNUSED = {"norm_final.weight"}  # NextDiT has it in some hosts, and nothing reads it
# The first linear thing that the text meets; in zimage a norm comes before it.
EMBED = {"wan": "text_embedding.0", "sd3": "context_embedder", "zimage": "cap_embedder.1"}


def fill(net: nn.Module, state: dict[str, torch.Tensor]) -> nn.Module:
    """Puts weights into a transformer of theirs; raises ValueError where they are another's."""
    missing, unknown = net.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    if unknown or set(missing) - UNUSED:
        raise ValueError(f"Weights of another layout: {[*unknown, *missing]}")
    return net


def velocity(kind: str, net, x, sigma, context):
    """What the host calls the model's output, of latents (B, 4, 8, 8).

    context may hold one text for several consecutive latents.
    """
    if kind == "wan":
        freqs = net.rope_encode(1, 8, 8, device=x.device, dtype=x.dtype)
        return net.forward_orig(x.unsqueeze(2), sigma * 1000, context, freqs=freqs).squeeze(2)
    context = context.repeat_interleave(len(x) // len(context), 0)
    if kind == "zimage":
        return net(x, sigma, context, context.shape[1])
    return net(x, sigma * 1000, context=context)


@torch.no_grad()
def start_from(net: NextDiT, text: torch.Tensor) -> None:
    """Lets a new zimage's embedder give about (text - mean) / deviation of such text (N, 128): no scale can be folded
    into it, since its norm comes first."""
    (norm, linear), mean, std = net.cap_embedder, text.mean(0), text.std(0)
    norm.weight.copy_(text.square().mean(1).sqrt().mean() / std)
    linear.bias.copy_(-linear.weight @ (mean / std))


def encode_text(ids, dense: bool = False):
    """(B, 77, 128) of captions as the host's SD 3 text encoder gives them: before the final layer norm."""
    model, index = studio.text_encoder()
    if not dense:
        ids = torch.tensor([[index[i] for i in studio.padded_ids(t)] for t in ids])
    with torch.no_grad():
        x = model.token_embedding(ids) + model.position_embedding
        for layer in model.layers:
            x = layer(x)
    return x


def fold(kind, state, mean, std):
    """Weights that take the text as it is, of weights that take (text - mean) / std."""
    w, b = (state[f"{EMBED[kind]}.{e}"] for e in ("weight", "bias"))
    folded = (w / std).half()
    return {**state, f"{EMBED[kind]}.weight": folded, f"{EMBED[kind]}.bias": b - folded.float() @ mean}


def channels(w, where, dim):
    """Spreads 4 live channels over the host's 16 along a dimension that holds (..., channel)."""
    parts = w.unflatten(dim, (-1, LIVE))
    out = parts.new_zeros(*parts.shape[: dim + 1], LATENT, *parts.shape[dim + 2 :])
    out.index_copy_(dim + 1, torch.tensor(where), parts)
    return out.flatten(dim, dim + 1)


def expand(kind: str, narrow: dict) -> dict:
    """The host's diffusion model state of the narrow weights."""
    where, out = LIVE_CHANNELS[kind], {}
    for key, w in narrow.items():
        if key in ("patch_embedding.weight", "x_embedder.proj.weight", "x_embedder.weight"):
            w = channels(w, where, 1)
        elif key.startswith(("head.head.", "final_layer.linear.")):
            w = channels(w, where, 0)
        elif key == f"{EMBED[kind]}.weight":
            w = put((w.shape[0], TEXT_FULL), w, w.dtype)
        elif key == "cap_embedder.0.weight":  # its norm takes the mean over zeros, too
            w = put((TEXT_FULL,), w.float() * (TEXT / TEXT_FULL) ** 0.5, torch.float32)
        elif ".mlp.fc1." in key:
            w = put((4 * 64 * SD3_DEPTH, *w.shape[1:]), w, w.dtype)
        elif key.endswith(".mlp.fc2.weight"):
            w = put((w.shape[0], 4 * 64 * SD3_DEPTH), w, w.dtype)
        out[key] = w.contiguous()
    if kind == "sd3":  # pooled text is not used
        width, half = 64 * SD3_DEPTH, {"dtype": torch.float16}
        out |= {
            "y_embedder.mlp.0.weight": torch.zeros(width, 2048, **half),
            "y_embedder.mlp.0.bias": torch.zeros(width, **half),
            "y_embedder.mlp.2.weight": torch.zeros(width, width, **half),
            "y_embedder.mlp.2.bias": torch.zeros(width, **half),
        }
    return out
