"""Change networks of torchgeo, trained as ours: same tiles, epochs, optimiser, augmentation, precision, running mean.

The losses of the map are the same, too; alignment and deep supervision do not apply, as they need our encoders and our
decoder, nor does whatever else a recipe says about our network. They start from random weights, as all rows do. Runs in
an environment of its own (`make bench-accuracy-torchgeo`).
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scoring import Trained, multiply_adds, parameters
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from hetecd.augment import augment, cutmix
from hetecd.config import TrainConfig, deciding
from hetecd.data import EpochSampler, TileDataset, collate, fit_modalities, split_tiles
from hetecd.errors import CheckpointError, ConfigError
from hetecd.files import replacing
from hetecd.metrics import Confusion, confusion
from hetecd.modality import Floats, Modality, Scaled
from hetecd.ops import keep_memory
from hetecd.train import lr_factor, parameter_groups, running_mean, segmentation_terms

NETWORKS: dict[str, dict[str, Any]] = {
    "FCSiamConc": {"encoder_weights": None, "classes": 2},
    "FCSiamDiff": {"encoder_weights": None, "classes": 2},
    "ChangeViT": {"backbone": "vit_tiny_patch16_224", "num_classes": 2},
}
PAD_TO = 32
log = logging.getLogger("hetecd")


class Siamese(nn.Module):
    """A network of torchgeo behind the two inputs of ours.

    Args:
        name: one of NETWORKS.
        channels: of both dates; a date with fewer is repeated up to them, as one encoder reads both.

    Raises:
        ConfigError: torchgeo has no such network.
    """

    def __init__(self, name: str, channels: int) -> None:
        super().__init__()
        if name not in NETWORKS:
            raise ConfigError(f"network: found {name!r}, expected one of {', '.join(NETWORKS)}")
        import torchgeo.models

        self.channels = channels
        self.net = getattr(torchgeo.models, name)(in_channels=channels, **NETWORKS[name])

    def forward(self, optical: Tensor, sar: Tensor) -> Tensor:
        """Two images (B, C_i, H, W) -> logits (B, 2, H, W)."""
        pair = [x[:, torch.arange(self.channels) % x.shape[1]] for x in (optical, sar)]
        x = torch.stack(pair, dim=1)  # (B, 2, C, H, W)
        H, W = x.shape[-2:]
        edge = -(-max(H, W) // PAD_TO) * PAD_TO  # ChangeViT reads squares only
        x = F.pad(x.flatten(1, 2), (0, edge - W, 0, edge - H), mode="replicate").unflatten(1, (2, self.channels))
        return self.net(x)[..., :H, :W]


def train_siamese(name: str, data: Path, config: TrainConfig, out: Path) -> Trained:
    """Train a network of torchgeo, see :func:`train_network`; ``name`` is one of NETWORKS."""
    return train_network(lambda optical, sar: Siamese(name, max(optical, sar)), data, config, out)


def train_network(make: Callable[[int, int], nn.Module], data: Path, config: TrainConfig, out: Path) -> Trained:
    """Train on what :func:`hetecd.train.fit` trains on and keep the epoch that it would keep.

    Args:
        make: channels of optical and of SAR -> a network of both that gives logits (B, 2, H, W).
        data: folder with a split "train".
        config: the training; alignment, deep supervision, calibration, pretrained encoders and workers do not apply.
        out: folder for ``state.pt``; an interrupted training goes on after its last whole epoch.

    Raises:
        InputError: the data cannot be used.
        CheckpointError: the interrupted training had other settings or tiles.
    """
    keep_memory()
    train_files, val_files, _ = split_tiles(data, config)
    optical, sar = fit_modalities(train_files, config)
    torch.manual_seed(config.seed)
    net = make(optical.channels, sar.channels)
    identity = {
        **deciding(asdict(config)),
        "training tiles": [tile.name for tile in train_files], "validation tiles": [tile.name for tile in val_files],
        "scaling": [asdict(optical), asdict(sar)],
    }  # fmt: skip
    run = _Run(net, config, torch.device("cuda" if torch.cuda.is_available() else "cpu"), identity)
    train_tiles = TileDataset(train_files, config, optical, sar, augment)
    val_tiles = TileDataset(val_files, config, optical, sar)
    sampler = EpochSampler(len(train_tiles), config.seed)
    loader = DataLoader(
        train_tiles, config.batch, sampler=sampler, collate_fn=collate, drop_last=len(train_tiles) > config.batch
    )
    run.resume(out / "state.pt")
    for epoch in range(run.epoch, config.epochs):
        start = time.monotonic()
        sampler.set_epoch(epoch)
        run.train(loader, epoch)
        iou = run.validate(DataLoader(val_tiles, config.batch, collate_fn=collate))
        run.keep(epoch, iou, time.monotonic() - start, out / "state.pt")
    net.load_state_dict(run.best)
    return _trained(net, config, optical, sar, run)


class _Run:
    """A training that can be interrupted after every epoch and goes on if ``identity`` is the same."""

    def __init__(self, net: nn.Module, config: TrainConfig, device: torch.device, identity: dict[str, Any]) -> None:
        self.net, self.config, self.device, self.identity = net.to(device), config, device, identity
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(net, multi_avg_fn=running_mean(config.ema), use_buffers=True)
        self.optimizer = torch.optim.AdamW(parameter_groups(net, config), lr=config.lr)
        self.epoch, self.seconds, self.iou = 0, 0.0, -math.inf
        self.best: dict[str, Tensor] = {}

    @property
    def result(self) -> nn.Module:
        """The network that is validated and kept: the running mean where there is one."""
        return self.net if self.average is None else self.average.module

    def train(self, loader: DataLoader[dict[str, Any]], epoch: int) -> None:
        """One epoch; chance is a function of (seed, epoch, step)."""
        config, steps = self.config, len(loader)
        self.net.train()
        for step, batch in enumerate(loader):
            seed = int(np.random.SeedSequence((config.seed, epoch, step, 0)).generate_state(1)[0])
            torch.manual_seed(seed)
            if config.cutmix:
                cutmix(batch, config.cutmix, torch.Generator().manual_seed(seed))
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(config, epoch * steps + step, config.epochs * steps)
            terms = segmentation_terms(self._logits(self.net, batch), batch["label"].to(self.device), config)
            loss = torch.stack(list(terms.values())).sum()
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.net.parameters(), config.clip or math.inf)
            if norm.isfinite():  # as ours: a step that overflowed is left out
                self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.net)

    def validate(self, loader: DataLoader[dict[str, Any]]) -> float:
        """IoU of the changed class, pooled; NaN where no label has a change."""
        self.result.eval()
        total = Confusion()
        with torch.no_grad():
            for batch in loader:
                logits = self._logits(self.result, batch)
                total += confusion((logits[:, 1] > logits[:, 0]).cpu().numpy(), batch["label"].numpy())
        return total.scores()["iou"] if total.tp + total.fn else math.nan  # no change held out: nothing to choose by

    def _logits(self, net: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return net(batch["optical"].to(self.device), batch["sar"].to(self.device))

    def keep(self, epoch: int, iou: float, seconds: float, path: Path) -> None:
        """Remember the best weights and write everything that going on needs."""
        if math.isnan(iou) or iou > self.iou:
            self.iou = self.iou if math.isnan(iou) else iou
            self.best = copy.deepcopy(self.result.state_dict())
        self.epoch, self.seconds = epoch + 1, self.seconds + seconds
        log.info("epoch %d/%d  val IoU %.4f  %.0f s", self.epoch, self.config.epochs, iou, seconds)
        state = {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "epoch": self.epoch, "seconds": self.seconds, "iou": self.iou, "identity": self.identity,
            "average": None if self.average is None else self.average.state_dict(),
        }  # fmt: skip
        with replacing(path) as part:
            torch.save(state, part)

    def resume(self, path: Path) -> None:
        """Go on where a training was interrupted, if there is one.

        Raises:
            CheckpointError: it had other settings or tiles.
        """
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        before = state.get("identity", {})
        if other := [key for key, value in self.identity.items() if key not in before or before[key] != value]:
            raise CheckpointError(
                f"resume: {', '.join(other)} differ from before; use those of before, or remove {path.parent}"
            )
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best, self.epoch, self.seconds, self.iou = (state[key] for key in ("best", "epoch", "seconds", "iou"))


def _trained(net: nn.Module, config: TrainConfig, optical: Modality, sar: Modality, run: _Run) -> Trained:
    net.eval()

    def compute(optical_batch: Floats, sar_batch: Floats) -> Floats:
        with torch.inference_mode():
            images = [torch.from_numpy(x).to(run.device) for x in (optical_batch, sar_batch)]
            return net(*images).float().softmax(1)[:, 1].cpu().numpy()

    return Trained(
        Scaled(compute, optical, sar), optical, sar, config.before_is, ignore_255=config.ignore_255,
        parameters=parameters(net), multiply_adds=multiply_adds(net, optical.channels, sar.channels),
        minutes=run.seconds / 60, epochs=config.epochs,
    )  # fmt: skip
