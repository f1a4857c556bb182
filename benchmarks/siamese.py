"""Change networks of torchgeo, trained as ours: same tiles, epochs, optimiser, augmentation and losses.

Only the alignment loss is missing, which needs our encoders. They start from random weights, as all rows do. Runs in
an environment of its own (`make bench-accuracy-torchgeo`).
"""

import copy
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scoring import Trained, multiply_adds, parameters
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hetecd.augment import augment
from hetecd.config import TrainConfig
from hetecd.data import EpochSampler, TileDataset, collate, fit_modalities, split_tiles
from hetecd.errors import ConfigError
from hetecd.files import replacing
from hetecd.losses import cross_entropy, soft_dice
from hetecd.metrics import Confusion, confusion
from hetecd.modality import Floats, Modality, from_raw
from hetecd.ops import keep_memory
from hetecd.train import lr_factor

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
        config: the training; alignment, workers and precision do not apply: it computes in float32.
        out: folder for ``state.pt``; an interrupted training goes on after its last whole epoch.

    Raises:
        InputError: the data cannot be used.
    """
    keep_memory()
    train_files, val_files, _ = split_tiles(data, config)
    optical, sar = fit_modalities(train_files, config)
    torch.manual_seed(config.seed)
    net = make(optical.channels, sar.channels)
    run = _Run(net, config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
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
    """A training that can be interrupted after every epoch."""

    def __init__(self, net: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.net, self.config, self.device = net.to(device), config, device
        decayed = [p for p in net.parameters() if p.ndim > 1 or config.decay == "all"]
        free = [p for p in net.parameters() if not (p.ndim > 1 or config.decay == "all")]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
        if free:
            groups.append({"params": free, "weight_decay": 0.0})
        self.optimizer = torch.optim.AdamW(groups, lr=config.lr)
        self.epoch, self.seconds, self.iou = 0, 0.0, -math.inf
        self.best: dict[str, Tensor] = {}

    def train(self, loader: DataLoader[dict[str, Any]], epoch: int) -> None:
        """One epoch; chance is a function of (seed, epoch)."""
        config, steps = self.config, len(loader)
        torch.manual_seed(int(np.random.SeedSequence((config.seed, epoch)).generate_state(1)[0]))
        self.net.train()
        for step, batch in enumerate(loader):
            for group in self.optimizer.param_groups:
                group["lr"] = config.lr * lr_factor(config, epoch * steps + step, config.epochs * steps)
            logits, label = self._logits(batch), batch["label"].to(self.device)
            loss = cross_entropy(logits, label, config.ce_weights) + config.dice_weight * soft_dice(logits, label)
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.net.parameters(), config.clip or math.inf)
            if norm.isfinite():  # as ours: a step that overflowed is left out
                self.optimizer.step()

    def validate(self, loader: DataLoader[dict[str, Any]]) -> float:
        """IoU of the changed class, pooled; NaN where neither map nor label has a change."""
        self.net.eval()
        total = Confusion()
        with torch.no_grad():
            for batch in loader:
                logits = self._logits(batch)
                total += confusion((logits[:, 1] > logits[:, 0]).cpu().numpy(), batch["label"].numpy())
        return total.scores()["iou"]

    def _logits(self, batch: dict[str, Tensor]) -> Tensor:
        return self.net(batch["optical"].to(self.device), batch["sar"].to(self.device))

    def keep(self, epoch: int, iou: float, seconds: float, path: Path) -> None:
        """Remember the best weights and write everything that going on needs."""
        if math.isnan(iou) or iou > self.iou:
            self.iou = self.iou if math.isnan(iou) else iou
            self.best = copy.deepcopy(self.net.state_dict())
        self.epoch, self.seconds = epoch + 1, self.seconds + seconds
        log.info("epoch %d/%d  val IoU %.4f  %.0f s", self.epoch, self.config.epochs, iou, seconds)
        state = {
            "net": self.net.state_dict(), "optimizer": self.optimizer.state_dict(), "best": self.best,
            "epoch": self.epoch, "seconds": self.seconds, "iou": self.iou,
        }  # fmt: skip
        with replacing(path) as part:
            torch.save(state, part)

    def resume(self, path: Path) -> None:
        """Go on where a training was interrupted, if there is one."""
        if not path.is_file():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
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
        from_raw(compute, optical, sar), optical, sar, config.before_is, ignore_255=config.ignore_255,
        parameters=parameters(net), multiply_adds=multiply_adds(net, optical.channels, sar.channels),
        minutes=run.seconds / 60, epochs=config.epochs,
    )  # fmt: skip
