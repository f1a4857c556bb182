"""Change detection between an optical image from before and a SAR image from after.

The names below are loaded on first use, so that ``import hetecd`` and ``hetecd --help`` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hetecd.config import ModelConfig as ModelConfig
    from hetecd.config import TrainConfig as TrainConfig
    from hetecd.convert import convert_file as convert_file
    from hetecd.evaluate import score as score
    from hetecd.model import HeteCD as HeteCD
    from hetecd.pair import open_pair as open_pair
    from hetecd.predict import predict_scene as predict_scene
    from hetecd.train import fit as fit
    from hetecd.weights import load as load
    from hetecd.weights import predictor as predictor

_HOME = {
    "HeteCD": "model", "ModelConfig": "config", "TrainConfig": "config", "convert_file": "convert",
    "fit": "train", "load": "weights", "open_pair": "pair", "predict_scene": "predict", "predictor": "weights",
    "score": "evaluate",
}  # fmt: skip

__all__ = ["__version__", *_HOME]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hetecd' has no attribute {name!r}")
    return getattr(import_module(f"hetecd.{_HOME[name]}"), name)
