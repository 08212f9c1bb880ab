"""The closed-form erasers that PURE is compared with, from their published formulas, on the narrow U-Net's key and
value weights.

Rows are text embeddings (n, 128); weights (80, 128) act on them from the left, so edits multiply on the right (OCE's
on the left). Nothing of the pack is used here.

    UCE (Gandikota et al., unified-concept-editing)    W (lam I + s_e sum c* c^T + s_p sum c_p c_p^T) (lam I + s_e sum c
    c^T + s_p sum c_p c_p^T)^-1,
        which is (lam W + s_e sum W c* c^T + s_p sum W c_p c_p^T) (...)^-1; c: embedding of a concept's last subject
        token, c*: of the guide's
    CURE (arXiv 2505.12677)                            W (I - P_f + P_f P_r), P = V diag(f) V^T, f = a r / ((a - 1) r +
        1), r = s^2 / sum s^2
    text basis (PURE's own ablation)                   W (I - P_F (I - P_R)), P from the top right-singular vectors of
        embedding rows by energy
    OCE (arXiv 2605.28902)                             Q W for value weights alone, Q = U V^T of the SVD of
        -s G (I - G*) + p sum (W c_p)(W c_p)^T + g W C W^T + lam W W^T: the rotation that takes what W makes of the
        concept (G projects on it) out of its place and leaves the rest where it is; G*: of the guide, C: second moment
        of ordinary captions' tokens. The last column of U is flipped where the determinant would be -1
"""

from __future__ import annotations

from collections.abc import Callable

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


Encode = Callable[[list[str]], Tensor]  # texts -> (n, at least 77, 128) embeddings, token by token


def last_subject_tokens(texts: list[str], encode: Encode = studio.encode_text) -> Tensor:
    """(n, 128) embedding of each text's last word piece (of the empty prompt: of its beginning)."""
    ends = [len(studio.token_ids(text)) - 2 for text in texts]
    return torch.stack([e[end] for end, e in zip(ends, encode(texts), strict=True)]).double()


def token_rows(texts: list[str], encode: Encode = studio.encode_text) -> Tensor:
    """(n, 128) embeddings of every word piece and the first end of each text.

    Not of the beginning, which all texts share.
    """
    ends = [max(2, len(studio.token_ids(text))) for text in texts]
    return torch.cat([e[1:end] for end, e in zip(ends, encode(texts), strict=True)]).double()


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


def text_basis_edit(forget: Tensor, retain: Tensor, forget_energy: float, keep_energy: float) -> Tensor:
    """PURE's E of embedding rows instead of activations."""
    eye = torch.eye(forget.shape[1], dtype=forget.dtype)
    return eye - energy_projector(forget, forget_energy) @ (eye - energy_projector(retain, keep_energy))


def span_projector(rows: Tensor) -> Tensor:
    """G of rows (n, d): onto the span of the rows, each of unit length, orthonormalised."""
    q, r = torch.linalg.qr(torch.nn.functional.normalize(rows).T)
    q = q[:, r.diagonal().abs() > 1e-9]
    return q @ q.T


def oce_rotation(
    weight: Tensor,
    forget: Tensor,
    guide: Tensor,
    preserve: Tensor,
    general: Tensor,
    scales: tuple[float, float, float, float] = (1.0, 0.3, 0.5, 1.5),
) -> Tensor:
    """OCE's Q for one value weight (d, e). scales: s, p, g, lam; its parser's defaults are 1, .3, .5, 1.5."""
    s, p, g, lam = scales
    w, eye = weight.double(), torch.eye(weight.shape[0], dtype=torch.float64)
    taken, kept = span_projector(forget @ w.T), span_projector(guide @ w.T)
    outputs, moment = preserve @ w.T, general.T @ general / len(general)
    m = -s * taken @ (eye - kept) + p * outputs.T @ outputs + g * w @ moment @ w.T + lam * w @ w.T
    u, _, vh = torch.linalg.svd(m)
    if torch.linalg.det(u @ vh) < 0:
        u = torch.cat([u[:, :-1], -u[:, -1:]], 1)
    return u @ vh


def rotated(rotation_of) -> dict[str, Tensor]:
    """All value weights of cross-attention, each multiplied from the left by what rotation_of makes of it."""
    return {
        k: (rotation_of(w) @ w.double()).float()
        for k, w in load_unet_state().items()
        if k.endswith("attn2.to_v.weight")
    }
