"""Pairs of subspaces for tests: random, overlapping, nested, orthogonal and empty ones, float64."""

import torch


def orthonormal(d, r, seed=0):
    return torch.linalg.qr(torch.randn(d, r, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))).Q


def pair(kind, d=48):
    """V_F, V_R of the kind."""
    base = orthonormal(d, 20)
    if kind == "random":
        return orthonormal(d, 6, 1), orthonormal(d, 9, 2)
    if kind == "overlapping":  # two directions in common, the others at an angle
        tilted = torch.linalg.qr(base[:, 2:6] + 0.7 * base[:, 10:14]).Q
        return base[:, :6], torch.linalg.qr(torch.cat([base[:, :2], tilted], 1)).Q
    if kind == "nested":
        return base[:, :3], base[:, :8]
    if kind == "orthogonal":
        return base[:, :5], base[:, 5:12]
    return base[:, :5], base[:, :0]  # nothing to retain


KINDS = ("random", "overlapping", "nested", "orthogonal", "empty")
