"""The ways in which models name and lay out their attention to text: a row each. A new family is a row here.

Found is what has a row's structure (module names, parts, shapes), whatever its classes are called. Names were read from
ComfyUI 0.3.75 and 0.33.0; tests/nodes/test_families.py and test_transformers.py load a small random model of each.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Part:
    """A weight of an attention module: the submodule that holds it, and which of how many parts of its rows.

    The parts of a fused weight are, in order, the last `of` of queries, keys and values.
    """

    module: str
    index: int = 0
    of: int = 1


@dataclass(frozen=True)
class Family:
    """How one family of models lets its picture tokens attend to text.

    name: what a person calls it. sites: a regular expression that the names of its attention modules match whole.
    values, keys, output: their weights; keys is None where text has no keys that an edit could be of. output belongs to
    the picture's tokens. heads: the attribute of the attention module (or a path to it) that holds their number;
    value_heads: of the values' heads, where several of the attention's share one (grouped queries). normed: a norm
    follows the keys, so that an edit of keys would be no projection of them. joint: text and picture tokens share one
    softmax, text first unless text_last (an attribute that says so, or True). shared: they share the weights too, and
    two other modules of the model, the text's and the picture's, put out as many tokens as there are of each (those
    behind the picture's are padding). alone: the host counts the text's tokens of a batch together, so that it can run
    one prompt at a time. tokens_first: activations are laid out (tokens, batch, channels). beside: a module of values
    for something else than text (a start picture); where it is there, what enters the output is the sum of both, and
    only text's own part is recorded.
    """

    name: str
    sites: str
    values: Part
    output: Part
    heads: str
    value_heads: str = ""
    keys: Part | None = None
    normed: bool = True
    joint: bool = False
    text_last: str | bool = False
    shared: tuple[str, str] | None = None
    alone: bool = False
    beside: str = ""
    tokens_first: bool = False

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.sites)


UNET = Family(
    "SD 1, SD 2, SDXL",
    r"(input_blocks|middle_block|output_blocks)\..*attn2",
    values=Part("to_v"),
    keys=Part("to_k"),
    output=Part("to_out.0"),
    heads="heads",
    normed=False,
)
CROSS_ATTENTION = (
    UNET,
    Family(
        "PixArt",
        r"blocks\.\d+\.cross_attn",
        values=Part("kv_linear", 1, 2),
        keys=Part("kv_linear", 0, 2),
        output=Part("proj"),
        heads="num_heads",
        normed=False,
    ),
    Family(
        "HunyuanDiT",
        r"blocks\.\d+\.attn2",
        values=Part("kv_proj", 1, 2),
        keys=Part("kv_proj", 0, 2),
        output=Part("out_proj"),
        heads="num_heads",
    ),
    Family(
        "Wan",
        r"(vace_)?blocks\.\d+\.cross_attn",
        values=Part("v"),
        keys=Part("k"),
        output=Part("o"),
        heads="num_heads",
        beside="v_img",
    ),
    Family(
        "Cosmos-Predict2, Anima",
        r"blocks\.\d+\.cross_attn",
        values=Part("v_proj"),
        keys=Part("k_proj"),
        output=Part("output_proj"),
        heads="n_heads",
    ),
    Family(
        "Cosmos 1",
        r"blocks\.block\d+\.blocks\.1\.block\.attn",
        values=Part("to_v.0"),
        keys=Part("to_k.0"),
        output=Part("to_out.0"),
        heads="heads",
        tokens_first=True,
    ),
    Family(
        "LTX Video",
        r"transformer_blocks\.\d+\.attn2",  # LTX-2's sound has attention of its own, and is left alone
        values=Part("to_v"),
        keys=Part("to_k"),
        output=Part("to_out.0"),
        heads="heads",
    ),
    Family(
        "Kandinsky 5",
        r"visual_transformer_blocks\.\d+\.cross_attention",
        values=Part("to_value"),
        keys=Part("to_key"),
        output=Part("out_layer"),
        heads="num_heads",
    ),
)
JOINT_ATTENTION = (
    Family(
        "SD 3",
        r"joint_blocks\.\d+",
        values=Part("context_block.attn.qkv", 2, 3),
        output=Part("x_block.attn.proj"),
        heads="x_block.attn.num_heads",
        joint=True,
    ),
    Family(
        "Qwen-Image",
        r"transformer_blocks\.\d+\.attn",
        values=Part("add_v_proj"),
        output=Part("to_out.0"),
        heads="heads",
        joint=True,
    ),
    Family(
        "Flux, Chroma, HunyuanVideo",
        r"double_blocks\.\d+",
        values=Part("txt_attn.qkv", 2, 3),
        output=Part("img_attn.proj"),
        heads="num_heads",
        joint=True,
        text_last="flipped_img_txt",
    ),
    Family(
        "AuraFlow",
        r"double_layers\.\d+\.attn",
        values=Part("w1v"),
        output=Part("w2o"),
        heads="n_heads",
        joint=True,
    ),
    Family(
        "HiDream",
        r"double_stream_blocks\.\d+\.block\.attn1",
        values=Part("to_v_t"),
        output=Part("to_out"),
        heads="heads",
        joint=True,
        text_last=True,
    ),
)
SINGLE_STREAM = (
    Family(
        "Z-Image, Lumina 2",
        r"layers\.\d+\.attention",
        values=Part("qkv", 2, 3),
        output=Part("out"),
        heads="n_local_heads",
        value_heads="n_local_kv_heads",
        joint=True,
        shared=("context_refiner.0", "x_embedder"),
    ),
    Family(
        "OmniGen2",
        r"layers\.\d+\.attn",
        values=Part("to_v"),
        output=Part("to_out.0"),
        heads="heads",
        value_heads="kv_heads",
        joint=True,
        shared=("context_refiner.0", "x_embedder"),
        alone=True,
    ),
    Family(
        "Krea 2",
        r"blocks\.\d+\.attn",
        values=Part("wv"),
        output=Part("wo"),
        heads="heads",
        value_heads="kvheads",
        joint=True,
        shared=("txtmlp", "first"),
    ),
)
FAMILIES = (*CROSS_ATTENTION, *JOINT_ATTENTION, *SINGLE_STREAM)
# Blocks of families above in which text and picture tokens share every weight: left alone, and counted in reports.
SHARED_BLOCKS = re.compile(r"(single_blocks|single_layers|single_stream_blocks)\.\d+")
# Families that cannot be edited: how to tell them, what they are called, and why.
WITHOUT_SITES = {
    r"layers\.\d+\.self_attention\.to_v": (
        "ERNIE-Image",
        "ComfyUI keeps its attention closed, so PURE cannot see what the model makes of text",
    ),
    r"blocks\.\d+\.attn\.qkv_proj": (
        "MiniMax H3",
        "it lines up the tokens of all prompts, pictures and sounds in one row, which PURE cannot take apart yet",
    ),
    r"down_blocks\..*\.kv_mapper\.1": (
        "Stable Cascade",
        "its text and picture share their attention weights, so PURE cannot edit one without the other",
    ),
}


# Sides of the pictures that families other than U-Nets were trained for, by the host's name, where it is not 1024.
NATIVE_SIDE = {
    "PixArt": 1024,
    "WAN21": 480,
    "WAN21_Vace": 480,
    "WAN21_Camera": 480,
    "WAN22": 704,
    "LTXV": 512,
    "LTXAV": 512,
    "HunyuanVideo": 512,
    "CosmosVideo": 704,
}


def listed(families: Sequence[Family]) -> str:
    """What a person calls them, for sentences."""
    *names, last = ", ".join(family.name for family in families).split(", ")
    return f"{', '.join(names)} and {last}" if names else last


def supported() -> str:
    """The families that can be edited, as a sentence without its full stop."""
    return f"PURE works with {listed([f for f in FAMILIES if not f.shared])}, and on trial with {listed(SINGLE_STREAM)}"
