"""The trainer's state on disk, without pickle.

Lightning hands over a nested dictionary of tensors and plain values (network, optimiser, schedule, progress). The
tensors go into a safetensors file, the tree around them into its metadata as JSON.
"""

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from hetecd.errors import CheckpointError
from hetecd.weights import read_tensors, save_tensors

FORMAT = "hetecd-state-1"


class SafetensorsIO(CheckpointIO):
    """Lightning's hook for writing and reading its state; also the only place that does so."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the state; the final name appears only when the file is whole."""
        tensors: dict[str, Tensor] = {}
        tree = json.dumps(_pack(checkpoint, tensors))
        save_tensors(path, tensors, {"format": FORMAT, "tree": tree})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read the state.

        Raises:
            CheckpointError: not written by :meth:`save_checkpoint`.
        """
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != FORMAT:
            raise CheckpointError(f"{path}: found format {metadata.get('format')!r}, expected {FORMAT!r} of a training")
        return _unpack(json.loads(metadata["tree"]), tensors)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a state."""
        Path(path).unlink(missing_ok=True)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON for `value`; its tensors go to `tensors`. Keys of dictionaries may be integers."""
    if isinstance(value, Tensor):
        # A copy: two entries of the tree may share memory, which safetensors does not allow.
        tensors[f"{len(tensors)}"] = value.detach().cpu().contiguous().clone()
        return {"tensor": f"{len(tensors) - 1}"}
    if isinstance(value, dict):
        return {"dict": [[key, _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise CheckpointError(f"training state: cannot store a {type(value).__name__}")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    return (
        torch.Size(content)
        if kind == "Size"
        else {"list": list, "tuple": tuple}[kind](_unpack(item, tensors) for item in content)
    )
