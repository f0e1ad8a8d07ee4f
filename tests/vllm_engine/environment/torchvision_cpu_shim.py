"""Lets a CPU build of torch import the torchvision of the package index, whose operators are built for CUDA.

vLLM and transformers use its transforms only. At import it looks up two operators that its library would have declared:
they are declared here, without kernels, just before. Lies in site-packages beside a .pth file that imports it.
"""

import sys
from importlib.abc import MetaPathFinder

OPERATORS = ("nms", "qnms")


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for name in OPERATORS:
                torch.library.define(
                    f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )


sys.meta_path.insert(0, _BeforeTorchvision())
