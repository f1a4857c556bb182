"""Access to the parity numbers: weights, images and labels made again from their names, and what they must give."""

import functools
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

CASES = {"A_e256_1x256": 256, "B_e256_2x128": 256, "C_e64_1x64": 64, "D_e64_1x96x160": 64}


def fill_module(folder: Path) -> ModuleType:
    """The numpy program that comes with the numbers."""
    spec = importlib.util.spec_from_file_location("parity_fill", folder / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def state_dict(folder: Path, keys_file: str, entry: str | None = None) -> dict[str, Tensor]:
    """All tensors of a key list, to do with as one likes."""
    return {key: tensor.clone() for key, tensor in _filled(folder, keys_file, entry).items()}


@functools.lru_cache(2)
def _filled(folder: Path, keys_file: str, entry: str | None) -> dict[str, Tensor]:
    """The same, made once: that takes the longest of many a test."""
    keys = json.loads((folder / keys_file).read_text())
    fill = fill_module(folder)
    return {k: torch.from_numpy(fill.fill_tensor(k, shape)) for k, shape in (keys[entry] if entry else keys).items()}


def case(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and JSON of one case."""
    with np.load(folder / f"case_{name}.npz") as arrays:
        return dict(arrays), json.loads((folder / f"case_{name}.json").read_text())


def inputs(folder: Path, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Optical and SAR image and label of one case."""
    arrays, _ = case(folder, name)
    B, _, H, W = arrays["logits"].shape
    fill = fill_module(folder)
    return (
        torch.from_numpy(fill.fill_image("optical", B, H, W)),
        torch.from_numpy(fill.fill_image("sar", B, H, W)),
        torch.from_numpy(fill.fill_label(B, H, W)),
    )
