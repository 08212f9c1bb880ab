"""Captures for tests without a host: rows of a concept and of what it shares with the rest, in two layers."""

from dataclasses import fields, replace

import torch
from pure_pack.pure_core.activations import Activations, Anchors, CaptureSettings, ModelIdentity, SiteShape
from pure_pack.pure_core.basis import Settings
from pure_pack.pure_core.moments import MomentsFitter

from spaces import orthonormal

D, HEADS = 32, 4
LAYERS = ("input_blocks.1.1.transformer_blocks.0.attn2", "middle_block.1.transformer_blocks.0.attn2")
CONCEPT, SHARED = orthonormal(D, 8, 7).split([2, 6], 1)
SETTINGS = CaptureSettings(10, 10, 1, 0, 1.0, 64, 64, "euler", "normal")
MODEL = ModelIdentity("SD15", "ab", "cd", "ef", "01", "23")


def rows(concept, seed, n=60):
    """(n, D) float64 rows of the concept or of the rest."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randn(n, 6, dtype=torch.float64, generator=g) @ SHARED.T + 3 * SHARED[:, 0]
    own = torch.randn(n, 2, dtype=torch.float64, generator=g)
    return h + (0.5 * own @ CONCEPT.T + 0.5 * CONCEPT[:, 0] if concept else 0)


def whole_layer(*values, **changes):
    """Settings of whole layers, and of neighbours without ordinary pictures."""
    given = dict(zip((f.name for f in fields(Settings)), values, strict=False))
    return Settings(**{"structure": "whole layer", "keep_weight": 3.0, **given, **changes})


def moments(h):
    """The moments of rows."""
    fitter = MomentsFitter(h.shape[1])
    fitter.add(h)
    return fitter.result()


def captured(role, concepts, blocks, heads=HEADS, prompts=None, **changes):
    """A capture of these rows, (n, D) per layer; with several concepts, n has to be a multiple of their number.

    changes: of its settings or of its model's identity.
    """
    count = len(blocks[0]) // len(concepts)
    names = {f.name for f in fields(CaptureSettings)}
    return Activations(
        role,
        {name: moments(h) for name, h in zip(LAYERS, blocks, strict=True)},
        {
            name: torch.stack([part.sum(0) for part in h.split(count)]).double()
            for name, h in zip(LAYERS, blocks, strict=True)
        },
        (count,) * len(concepts),
        {name: SiteShape(h.shape[1], heads, 16) for name, h in zip(LAYERS, blocks, strict=True)},
        Anchors(tuple(concepts), tuple(concepts if prompts is None else prompts)),
        replace(SETTINGS, **{k: v for k, v in changes.items() if k in names}),
        replace(MODEL, **{k: v for k, v in changes.items() if k not in names}),
    )


FORGET = captured("forget", ["zorbo"], [rows(True, 1), rows(True, 2)])
INSTEAD = captured("forget", ["a dog"], [rows(False, 7) + 1.0, rows(False, 8) - 1.0])
RETAIN = captured("retain", ["miplo", "fintolo"], [rows(False, 3, 200), rows(False, 4, 200)])
