"""Looks at a MODEL's attention sites while it runs: what text renders there, and nothing of it is changed.

In cross-attention, h = softmax(Q K^T / sqrt(d)) V with heads concatenated is what enters the output projection: PURE's
activation (arXiv 2605.25765). In joint attention the text's part of it is recorded, for picture token i

    h_T = sum over text tokens j of a_ij v_j,

with the softmax over all tokens: one more attention call, with the picture's values set to zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ...pure_core.errors import PureError
from .sites import AttentionSite, attribute, diffusion_model

Seen = Callable[[AttentionSite, torch.Tensor], None]  # takes h (batch, picture tokens, d) of a site
OVERRIDE = "optimized_attention_override"


@contextlib.contextmanager
def observed(model: Any, sites: list[AttentionSite], seen: Seen, after_output: bool = False) -> Iterator[Any]:
    """Gives a MODEL to sample with; every time a site runs, `seen` is called with what text renders there.

    after_output: with what the output projection makes of it, which an edit of any projection changes (cross-attention
    alone). The hooks are gone after the block, however it ends; the MODEL given is a clone where options have to be
    set.
    """
    root = diffusion_model(model)
    with contextlib.ExitStack() as stack:
        if (sites[0].family.joint or sites[0].summed) and not after_output:
            yield _observe_calls(model, sites, seen, root, stack)
            return
        for site in sites:
            stack.callback(_observe_output(root, site, seen, after_output).remove)
        yield model


def _observe_output(root: torch.nn.Module, site: AttentionSite, seen: Seen, after_output: bool) -> Any:
    """A hook on a site's output projection."""

    def laid_out(h: torch.Tensor) -> torch.Tensor:
        return h.transpose(0, 1) if site.family.tokens_first else h

    output = root.get_submodule(site.output)
    if after_output:
        return output.register_forward_hook(lambda _, args, out: seen(site, laid_out(out)))
    return output.register_forward_pre_hook(lambda _, args: seen(site, laid_out(args[0])))


def _observe_calls(
    model: Any, sites: list[AttentionSite], seen: Seen, root: torch.nn.Module, stack: contextlib.ExitStack
) -> Any:
    """A clone whose attention calls are looked at; a hook on the text's values tells whose call comes next."""
    waiting: list[tuple[AttentionSite, torch.Tensor]] = []  # the site that has made its text's values, and those

    def after_values(site: AttentionSite) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
            waiting[:] = [(site, out)]

        return hook

    for site in sites:
        stack.callback(root.get_submodule(site.text).register_forward_hook(after_values(site)).remove)
    stack.callback(waiting.clear)
    clone = model.clone()
    options = clone.model_options["transformer_options"] = {**clone.model_options.get("transformer_options", {})}
    other = options.get(OVERRIDE)

    def override(attend: Callable[..., torch.Tensor], *args: Any, **kwargs: Any) -> torch.Tensor:
        call = (lambda *a, **k: other(attend, *a, **k)) if other else attend
        out = call(*args, **kwargs)
        if waiting:
            site, values = waiting[0]
            if site.family.joint:
                waiting.clear()
                seen(site, text_part(call, site, last_text(site, root), values.shape[1], out, *args, **kwargs))
            elif args[2].data_ptr() == values.data_ptr():  # the other call is of something else than text
                waiting.clear()
                seen(site, out)
        return out

    options[OVERRIDE] = override
    return clone


def last_text(site: AttentionSite, root: torch.nn.Module) -> bool:
    """Whether the text's tokens come after the picture's."""
    where = site.family.text_last
    return bool(attribute(root.get_submodule(site.name), where)) if isinstance(where, str) else where


def text_part(
    attend: Callable[..., torch.Tensor],
    site: AttentionSite,
    text_last: bool,
    text: int,
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """h_T (batch, picture tokens, d): the same attention of the picture's tokens, with the picture's values zero.

    q, k, v: (batch, heads, tokens, d / heads) with skip_reshape, else (batch, tokens, d), as the host's attention has
    it.
    """
    axis = 2 if kwargs.get("skip_reshape") else 1
    tokens = q.shape[axis]
    if not text < tokens or out.shape[1] != tokens or out.dim() != 3:
        raise PureError(
            f"The attention of layer {site.name} does not look as expected ({tokens} tokens, {text} of text). Please "
            "report this with the MODEL's name."
        )
    pictures = tokens - text
    of_text, of_picture = ((pictures, text), (0, pictures)) if text_last else ((0, text), (text, pictures))
    only_text = torch.zeros_like(v)
    only_text.narrow(axis, *of_text).copy_(v.narrow(axis, *of_text))
    if mask is not None and mask.dim() > 2 and mask.shape[-2] == tokens:
        mask = mask.narrow(-2, *of_picture)
    return attend(q.narrow(axis, *of_picture), k, only_text, heads, mask=mask, **kwargs)
