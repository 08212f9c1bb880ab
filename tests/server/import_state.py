"""Run by test_published in a process of its own: imports a pack into a host and prints what that changed.

python import_state.py HOST_SOURCE BASE PACK
"""

import asyncio
import importlib
import json
import os
import sys
import types

source, base, pack = sys.argv[1:]
sys.path[0] = source
sys.argv = sys.argv[:1]

from comfy.cli_args import args

args.cpu, args.base_directory = True, base

IMPORTED = (
    *("utils.install_util", "folder_paths", "nodes", "execution", "server", "latent_preview", "comfy_api.latest"),
    *("comfy.float", "comfy.lora", "comfy.sample", "comfy.samplers", "comfy.sd", "comfy.weight_adapter", "torch"),
)
for module in IMPORTED:  # in this order, which is main.py's
    importlib.import_module(module)
folder_paths, nodes, torch = (sys.modules[name] for name in ("folder_paths", "nodes", "torch"))
WATCHED = ("comfy", "comfy_api", "nodes", "execution", "server", "folder_paths", "latent_preview", "torch")
HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
METHODS = (types.FunctionType, staticmethod, classmethod, property)


def functions() -> dict[str, int]:
    """The identity of every function, class and method of the host's modules and torch's."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] not in WATCHED:
            continue
        for key, value in list(vars(module).items()):
            if isinstance(value, (types.FunctionType, types.BuiltinFunctionType, type)):
                found[f"{name}.{key}"] = id(value)
            if isinstance(value, type) and value.__module__ == name:
                found |= {f"{name}.{key}.{k}": id(v) for k, v in vars(value).items() if isinstance(v, METHODS)}
    return found


def state() -> dict:
    """Everything a pack could change, by name."""
    return {
        "path": list(sys.path),
        "environ": dict(os.environ),
        "meta_path": [repr(m) for m in sys.meta_path],
        "excepthook": repr(sys.excepthook),
        "nodes": id(sys.modules["nodes"]),
        "hooks": [len(getattr(sys.modules["torch.nn.modules.module"], name)) for name in HOOKS],
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "dtype": str(torch.get_default_dtype()),
        "folders": {k: list(v[0]) for k, v in folder_paths.folder_names_and_paths.items()},
        "node_ids": sorted(nodes.NODE_CLASS_MAPPINGS),
    }


functions_before, before = functions(), state()
loaded = asyncio.run(nodes.load_custom_node(pack))
functions_after, after = functions(), state()
changed = {k: [before[k], after[k]] for k in before if before[k] != after[k]}
patched = [k for k, v in functions_before.items() if functions_after.get(k) != v]
print("STATE " + json.dumps([loaded, changed, patched, len(functions_before)]))
