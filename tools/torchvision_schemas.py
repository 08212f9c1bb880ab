"""Lets PyPI's CUDA build of torchvision be imported beside a CPU build of torch.

Installed into the test environment by get_comfyui.py, with a .pth file that imports it at start-up. That build's
extension library cannot be loaded there, and torchvision then stops at "operator torchvision::nms does not exist";
declaring the two schemas first is enough for everything a ComfyUI on the CPU does with it.
"""

import importlib.abc
import sys

SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    library = None  # held here: the schemas live as long as the Library object

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            type(self).library = torch.library.Library("torchvision", "DEF")
            for schema in SCHEMAS:
                self.library.define(schema)
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
