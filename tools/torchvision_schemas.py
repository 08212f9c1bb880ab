"""Lets PyPI's CUDA build of torchvision be imported beside a CPU build of torch.

Installed into the test environment by get_comfyui.py, with a .pth file that imports it at start-up. That build's
extension library cannot be loaded there, and torchvision then stops at "operator torchvision::nms does not exist";
declaring the two schemas first is enough for everything a ComfyUI on the CPU does with it. Where the library can be
loaded, it declares them itself, and twice would end the process.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def loads(torch) -> bool:
    """Whether torchvision's own extension library, which declares the schemas, can be loaded."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        return False
    try:
        for library in Path(spec.submodule_search_locations[0]).glob("_C.*"):
            torch.ops.load_library(library)
            return True
    except OSError:  # of another build than torch
        pass
    return False


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    library = None  # held here: the schemas live as long as the Library object

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if loads(torch):
                return None
            type(self).library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                self.library.define(schema)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
