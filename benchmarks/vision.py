"""Make torchvision importable beside a torch that it was not built for.

PyTorch's CPU wheel cannot load the compiled operations of torchvision's default wheel, and without them torchvision
does not import. Nothing here needs them (torchgeo's networks do not), but the libraries import torchvision wherever it
is installed: declaring two of its operations by name is enough.
"""

import importlib.util
from pathlib import Path

import torch

DECLARED: list[torch.library.Library] = []  # they exist as long as this does


def prepare() -> None:
    """Declare the operations if torchvision is installed and cannot load its own. Call before importing lightning."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or DECLARED:
        return
    for path in Path(next(iter(spec.submodule_search_locations or ()))).glob("_C*"):
        try:
            torch.ops.load_library(path)
        except OSError:
            DECLARED.append(torch.library.Library("torchvision", "DEF"))
            for name in ("nms", "qnms"):
                DECLARED[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            return
