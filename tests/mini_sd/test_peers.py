"""The peers' edits are what their formulas say."""

import pytest
import torch
from torch.testing import assert_close

from benchmarks import attacks, peers

G = torch.Generator().manual_seed(0)
F, R, C = (torch.randn(n, 12, dtype=torch.float64, generator=G) for n in (3, 5, 1))
W = torch.randn(7, 12, dtype=torch.float64, generator=G)


def test_uce_minimises_its_own_objective():
    """lam |W' - W|^2 + s_e sum |W' c - W c*|^2 + s_p sum |W' c_p - W c_p|^2: no step from W' lowers it."""
    lam, s_e, s_p = 0.5, 2.0, 3.0

    def cost(w):
        return (
            lam * (w - W).square().sum()
            + s_e * (w @ F.T - W @ C.T).square().sum()
            + s_p * ((w - W) @ R.T).square().sum()
        )

    best = W @ peers.uce_edit(F, C, R, lam, s_e, s_p)
    for _ in range(20):
        step = torch.randn(W.shape, dtype=W.dtype, generator=G)
        assert cost(best) < cost(best + 1e-3 * step)
    assert cost(best) < cost(W)  # control: the unedited weight is not it


def test_cure_is_its_spectral_expansion():
    q = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=G)).Q
    rows = torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)) @ q[:2]
    r = torch.tensor([0.9, 0.1], dtype=torch.float64)
    p = peers.cure_projector(rows, 2.0)
    assert_close(p @ q[:2].T, q[:2].T * (2 * r / (r + 1)), rtol=1e-5, atol=1e-8)
    far = q[4:6]
    assert_close(
        peers.cure_edit(rows, far), torch.eye(12, dtype=torch.float64) - p, rtol=1e-5, atol=1e-12
    )  # nothing shared: nothing spared
    assert not torch.allclose(peers.cure_edit(rows, rows), torch.eye(12, dtype=torch.float64) - p, atol=1e-3)


def test_the_text_basis_projects_embeddings_and_spares_the_retained():
    e = peers.text_basis_edit(F, R, 1.0, 1.0)
    assert (R @ e.T - R).norm() < 1e-9 * R.norm()
    assert (F @ e.T).norm() < 0.9 * F.norm()
    apart = R - R @ peers.energy_projector(F, 1.0)  # control: with nothing shared nothing is left
    assert (F @ peers.text_basis_edit(F, apart, 1.0, 1.0).T).norm() < 1e-9 * F.norm()


def test_oce_is_the_rotation_that_its_objective_asks_for():
    """Of all rotations Q the one with the largest tr(Q^T M): no small rotation away from it has more."""
    scales = (5.0, 0.3, 0.5, 0.1)
    q = peers.oce_rotation(W, F, C, R, R, scales)
    assert_close(q @ q.T, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-9)
    assert_close(torch.linalg.det(q), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-9)
    g, kept = (peers.span_projector(rows @ W.T) for rows in (F, C))
    assert_close(g @ (F @ W.T).T, (F @ W.T).T, rtol=0, atol=1e-9)
    outputs = R @ W.T
    m = -5 * g @ (torch.eye(7, dtype=torch.float64) - kept) + 0.3 * outputs.T @ outputs
    m += 0.5 * W @ (R.T @ R / len(R)) @ W.T + 0.1 * W @ W.T
    for _ in range(20):
        skew = torch.randn(7, 7, dtype=torch.float64, generator=G)
        turned = torch.matrix_exp(1e-2 * (skew - skew.T)) @ q
        assert (turned * m).sum() <= (q * m).sum()
    assert (torch.eye(7, dtype=torch.float64) * m).sum() < (q * m).sum()  # control: it is not no edit


@pytest.mark.parametrize(("text", "count"), [("", 1), ("zorbo", 3)])
def test_rows_are_word_pieces_and_the_end(text, count):
    assert len(peers.token_rows([text])) == count
    assert len(peers.edited(torch.eye(128, dtype=torch.float64))) == 14


def test_a_relearned_embedding_makes_of_edited_weights_what_the_original_ones_made():
    names = ("a.attn2.to_k.weight", "b.attn2.to_v.weight", "b.attn1.to_v.weight")
    original = {name: torch.randn(20, 12, generator=G) for name in names}
    edit = torch.eye(12) + 0.3 * torch.randn(12, 12, generator=G)
    edited = {name: w @ edit for name, w in original.items() if "attn2" in name}
    c = torch.randn(5, 12, generator=G)
    relearned = c @ attacks.relearning(original, edited, lam=1e-9).T
    for name, w in edited.items():
        assert_close(relearned @ w.T, c @ original[name].T, rtol=1e-3, atol=1e-3)
        assert (c @ w.T - c @ original[name].T).abs().max() > 0.5  # control
    with pytest.raises(ValueError, match="no key or value weight"):
        attacks.relearning(original, {names[2]: original[names[2]]})
