"""The closed-form erasers that PURE is compared with, from their published formulas, on the narrow U-Net's key and
value weights.

Rows are text embeddings (n, 128); weights (80, 128) act on them from the left, so edits multiply on the right. Nothing
of the pack is used here.

    UCE (Gandikota et al., unified-concept-editing)    W (lam I + s_e sum c* c^T + s_p sum c_p c_p^T) (lam I + s_e sum c
    c^T + s_p sum c_p c_p^T)^-1,
        which is (lam W + s_e sum W c* c^T + s_p sum W c_p c_p^T) (...)^-1; c: embedding of a concept's last subject
        token, c*: of the guide's
    CURE (arXiv 2505.12677)                            W (I - P_f + P_f P_r), P = V diag(f) V^T, f = a r / ((a - 1) r +
    1), r = s^2 / sum s^2 text basis (PURE's own ablation)                   W (I - P_F (I - P_R)), P from the top
    right-singular vectors of embedding rows by energy
"""

from __future__ import annotations

import torch

from mini_sd import studio
from mini_sd.narrow import load_unet_state

Tensor = torch.Tensor


def edited(edit: Tensor) -> dict[str, Tensor]:
    """All key and value weights of cross-attention times a (128, 128) edit."""
    return {
        k: (w.double() @ edit).float()
        for k, w in load_unet_state().items()
        if k.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }


def last_subject_tokens(texts: list[str]) -> Tensor:
    """(n, 128) embedding of each text's last word piece (of the empty prompt: of its beginning)."""
    return torch.stack(
        [e[len(studio.token_ids(t)) - 2] for t, e in zip(texts, studio.encode_text(texts), strict=True)]
    ).double()


def token_rows(texts: list[str]) -> Tensor:
    """(n, 128) embeddings of every word piece and the first end of each text.

    Not of the beginning, which all texts share.
    """
    return torch.cat(
        [e[1 : max(2, len(studio.token_ids(t)))] for t, e in zip(texts, studio.encode_text(texts), strict=True)]
    ).double()


def uce_edit(
    forget: Tensor,
    guide: Tensor,
    preserve: Tensor,
    lam: float = 0.5,
    erase_scale: float = 1.0,
    preserve_scale: float = 1.0,
) -> Tensor:
    """UCE's edit of the identity: multiplied from the left by W it is UCE's new weight."""
    eye = torch.eye(forget.shape[1], dtype=forget.dtype)
    kept = lam * eye + preserve_scale * preserve.T @ preserve
    return (kept + erase_scale * guide.expand_as(forget).T @ forget) @ torch.linalg.inv(
        kept + erase_scale * forget.T @ forget
    )


def cure_projector(rows: Tensor, alpha: float) -> Tensor:
    """CURE's spectral expansion."""
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    r = s.square() / s.square().sum()
    return vh.T @ torch.diag(alpha * r / ((alpha - 1) * r + 1)) @ vh


def cure_edit(forget: Tensor, retain: Tensor, alpha: float = 2.0) -> Tensor:
    p_f, p_r = cure_projector(forget, alpha), cure_projector(retain, alpha)
    return torch.eye(forget.shape[1], dtype=forget.dtype) - p_f + p_f @ p_r


def energy_projector(rows: Tensor, energy: float) -> Tensor:
    """P of the fewest top right-singular vectors that hold this share of the rows' energy."""
    _, s, vh = torch.linalg.svd(rows, full_matrices=False)
    v = vh[: int((s.square().cumsum(0) / s.square().sum() < energy).sum()) + 1]
    return v.T @ v


def text_basis_edit(forget: Tensor, retain: Tensor, forget_energy: float, retain_energy: float) -> Tensor:
    """PURE's E of embedding rows instead of activations."""
    eye = torch.eye(forget.shape[1], dtype=forget.dtype)
    return eye - energy_projector(forget, forget_energy) @ (eye - energy_projector(retain, retain_energy))
