"""PURE Concept Unlearning: a ComfyUI node pack that erases a concept from a text-to-image diffusion MODEL in closed
form.

Nothing is imported here, so that pure_core can be used where there is no ComfyUI.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> object:
    """Called by ComfyUI's loader; returns the extension that lists the nodes."""
    from .nodes.extension import PureExtension

    return PureExtension()
