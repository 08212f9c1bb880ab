"""The leading eigenpairs that a basis needs, by this pack and by the libraries that know how to find them."""

from __future__ import annotations

from functools import partial

from . import meters

SIZES = (96, 128, 192, 256, 320, 640, 960, 1280)


def grams(size: int) -> dict:
    """Gram matrices that the contrast rule decomposes, of made captures; each with its cut."""
    import torch
    from pure_pack.nodes.host.sites import AttentionSite
    from pure_pack.pure_core.contrast import contrast_rank, whitened
    from pure_pack.pure_core.eigenpairs import smaller_gram

    from .speed import synthetic

    def cut(values: torch.Tensor, total: float) -> int:
        return contrast_rank(values, 3.0)

    out = {}
    for label, directions in (("8 directions", 8), ("turned round", 0)):
        site = AttentionSite("site", size, 8, 768, 0.0, {}, None, "", "")
        forget, retain = (part.moments["site"] for part in synthetic([site], directions))
        out[label] = smaller_gram(whitened(forget, retain)[1]), cut
    return out


def eigensolvers(_: str) -> list[list]:
    """A row a matrix: how many pairs are kept, milliseconds of each way, and how far its projector is from the whole
    decomposition's."""
    import inprocess

    inprocess.start()
    import torch
    from pure_pack.pure_core.eigenpairs import leading_pairs, whole_pairs

    rows = []
    for size in SIZES:
        for label, (gram, cut) in grams(size).items():
            values, vectors = whole_pairs(gram)
            k = cut(values, float(gram.trace()))

            def lobpcg(gram=gram, k=k):
                torch.manual_seed(0)
                return torch.lobpcg(gram, k=k + 1, tol=1e-14, niter=200)[1]

            def ours(gram=gram, cut=cut):
                found = leading_pairs(gram, cut)
                return None if found is None else found[1]

            ways = [partial(whole_pairs, gram), ours, lobpcg]
            seconds = meters.best(ways)
            projector = vectors[:, :k] @ vectors[:, :k].T
            cells = [f"{1000 * seconds[0]:.1f}"]
            for time, way in zip(seconds[1:], ways[1:], strict=True):
                found = way()
                if found is None:  # a whole decomposition follows
                    cells.append(f"{1000 * time:.1f}, gave up")
                else:
                    y = found[:, :k]
                    cells.append(f"{1000 * time:.1f} ({float((y @ y.T - projector).abs().max()):.0e})")
            rows.append([f"{gram.shape[0]}, {label}", k, *cells])
    return rows
