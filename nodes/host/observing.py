"""Looks at a MODEL's attention sites while it runs: what text renders there, and nothing of it is changed.

In cross-attention, h = softmax(Q K^T / sqrt(d)) V with heads concatenated is what enters the output projection: PURE's
activation (arXiv 2605.25765). In joint attention the text's part of it is recorded, for picture token i

    h_T = sum over text tokens j of a_ij v_j,

with the softmax over all tokens: one more attention call, with the picture's values set to zero.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

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
    waiting: list[tuple[AttentionSite, torch.Tensor]] = []  # the site that has made its values, and those
    tokens: dict[str, int] = {}  # how many tokens came out of the modules that say how many are text and picture

    def after(module: str, do: Callable[[torch.Tensor], Any]) -> None:
        handle = root.get_submodule(module).register_forward_hook(lambda _, args, out: do(out))
        stack.callback(handle.remove)

    def made_values(site: AttentionSite, values: torch.Tensor) -> None:
        waiting[:] = [(site, values)]

    def made_tokens(module: str, out: torch.Tensor) -> None:
        tokens[module] = out.shape[1]

    for site in sites:
        after(site.text, partial(made_values, site))
    for module in sites[0].family.shared or ():
        after(module, partial(made_tokens, module))
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
                where = layout(site, root, args[0], values, tokens, kwargs)
                seen(site, text_part(call, site, where, out, *args, **kwargs))
            elif args[2].data_ptr() == values.data_ptr():  # the other call is of something else than text
                waiting.clear()
                seen(site, out)
        return out

    options[OVERRIDE] = override
    return clone


class Layout(NamedTuple):
    """Where a joint call has its tokens, (start, length): the text's and the picture's; and how many there are."""

    text: tuple[int, int]
    picture: tuple[int, int]
    tokens: int


def layout(
    site: AttentionSite,
    root: torch.nn.Module,
    q: torch.Tensor,
    values: torch.Tensor,
    counted: dict[str, int],
    options: dict[str, Any],
) -> Layout:
    """Of a joint attention call with these queries; values: what the site's module of values made."""
    tokens = q.shape[token_axis(options)]
    if site.family.shared:  # text, padding, picture, padding
        text, pictures = (counted[module] for module in site.family.shared)
        return Layout((0, text), (text, pictures), tokens)
    text = values.shape[1]
    if last_text(site, root):
        return Layout((tokens - text, text), (0, tokens - text), tokens)
    return Layout((0, text), (text, tokens - text), tokens)


def token_axis(options: dict[str, Any]) -> int:
    """The tokens' dimension in the host's attention: (batch, heads, tokens, d / heads) with skip_reshape, else (batch,
    tokens, d)."""
    return 2 if options.get("skip_reshape") else 1


def last_text(site: AttentionSite, root: torch.nn.Module) -> bool:
    """Whether the text's tokens come after the picture's."""
    where = site.family.text_last
    return bool(attribute(root.get_submodule(site.name), where)) if isinstance(where, str) else where


def text_part(
    attend: Callable[..., torch.Tensor],
    site: AttentionSite,
    where: Layout,
    out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    heads: int,
    mask: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """h_T (batch, picture tokens, d): the same attention of the picture's tokens, with all values but the text's zero.

    q, k, v: as the host's attention has them.
    """
    axis = token_axis(kwargs)
    fits = where.picture[1] > 0 and sum(where.picture) <= where.tokens
    if not fits or out.shape[1] != where.tokens or out.dim() != 3:
        raise PureError(
            f"The attention of layer {site.name} does not look as expected ({where.tokens} tokens, {where.text[1]} of "
            "text). Please report this with the MODEL's name."
        )
    only_text = torch.zeros_like(v)
    only_text.narrow(axis, *where.text).copy_(v.narrow(axis, *where.text))
    if mask is not None and mask.dim() > 2 and mask.shape[-2] == where.tokens:
        mask = mask.narrow(-2, *where.picture)
    return attend(q.narrow(axis, *where.picture), k, only_text, heads, mask=mask, **kwargs)
