"""Everything that the sources use of ComfyUI is there and takes what it is given.

a host that changed is named here, not by what breaks behind it.
"""

import ast
import importlib
import inspect

import pytest

from get_comfyui import PROJECT

MOVED = {"comfy.model_patcher.string_to_seed"}  # used where the newer place is not there
METHODS = {  # of objects that the host hands in, and what the pack gives them beside the object itself
    "comfy.model_patcher.ModelPatcher": {
        "clone": 0,
        "add_patches": 2,
        "get_model_object": 1,
        "model_size": 0,
    },
    "comfy.sd.CLIP": {"tokenize": 1, "encode_from_tokens_scheduled": 1},
    "comfy.sd.VAE": {"decode": 1},
    "comfy.supported_models_base.BASE": {
        "process_unet_state_dict_for_saving": 1,
        "process_clip_state_dict_for_saving": 1,
        "process_vae_state_dict_for_saving": 1,
        "model_type": 2,
    },
    "comfy.weight_adapter.base.WeightAdapterBase": {"calculate_weight": 8},
    "server.PromptServer": {"send_progress_text": 2},
}


def dotted(node) -> str:
    """a.b.c of an attribute chain; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner else ""


def uses() -> dict[str, list[tuple[str, int, tuple[str, ...]]]]:
    """Dotted name of the host -> calls of it: file, number of positional arguments, names of the others."""
    found: dict[str, list] = {}
    for path in sorted((PROJECT / "nodes").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported.update(
                    {a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names}
                )
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
        ours = {
            name: module
            for name, module in imported.items()
            if module.split(".")[0] in ("comfy", "comfy_api", "folder_paths", "latent_preview", "server")
        }

        def whole(node, ours=ours):
            return (
                ".".join([ours[dotted(node).split(".")[0]], *dotted(node).split(".")[1:]])
                if dotted(node).split(".")[0] in ours
                else ""
            )

        parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        for node in ast.walk(tree):
            if (
                isinstance(node, (ast.Attribute, ast.Name))
                and not isinstance(parents.get(node), ast.Attribute)
                and whole(node)
            ):
                calls = found.setdefault(whole(node), [])
                call = parents.get(node)
                if (
                    isinstance(call, ast.Call)
                    and call.func is node
                    and not any(isinstance(a, ast.Starred) for a in call.args)
                    and all(k.arg for k in call.keywords)
                ):
                    calls.append((path.name, len(call.args), tuple(k.arg for k in call.keywords)))
    return found


def resolve(name: str):
    """The object of a dotted name; AttributeError where the host has none."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ImportError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise AttributeError(name)


def check(name: str, calls) -> None:
    try:
        value = resolve(name)
    except AttributeError:
        pytest.fail(f"This ComfyUI has no {name}")
    for where, positional, named in calls:
        try:
            inspect.signature(value).bind(*[None] * positional, **dict.fromkeys(named))
        except TypeError as error:
            pytest.fail(f"This ComfyUI's {name} does not take what {where} gives it: {error}")


@pytest.mark.parametrize("name", sorted(set(uses()) - MOVED))
def test_what_is_used_of_the_host_is_there(mini, name):
    check(name, uses()[name])


@pytest.mark.parametrize(
    ("owner", "method"), [(owner, method) for owner, methods in METHODS.items() for method in methods]
)
def test_objects_of_the_host_have_the_methods_that_are_called(mini, owner, method):
    check(f"{owner}.{method}", [("the pack", METHODS[owner][method] + 1, ())])


def test_a_host_that_changed_is_named(mini, monkeypatch):
    """Control: what is gone, and what takes other arguments."""
    import comfy.float
    import comfy.lora

    assert {
        "comfy.lora.calculate_weight",
        "comfy.sd.save_checkpoint",
        "folder_paths.get_save_image_path",
        "comfy_api.latest.io.Schema",
        "server.PromptServer",
    } <= set(uses())
    monkeypatch.setattr(comfy.lora, "calculate_weight", lambda weight: weight)
    with pytest.raises(
        pytest.fail.Exception, match=r"comfy.lora.calculate_weight does not take what (lora_file|weights).py gives it"
    ):
        check("comfy.lora.calculate_weight", uses()["comfy.lora.calculate_weight"])
    monkeypatch.delattr(comfy.float, "stochastic_rounding")
    with pytest.raises(pytest.fail.Exception, match=r"has no comfy.float.stochastic_rounding"):
        check("comfy.float.stochastic_rounding", [])
