"""Training: a folder of tiles in, checkpoints out. Lightning runs the loop."""

import csv
import dataclasses
import hashlib
import logging
import math
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from hetecd import losses
from hetecd.augment import augment, cutmix
from hetecd.calibrate import calibrate_to
from hetecd.config import IGNORE, ModelConfig, TrainConfig, deciding
from hetecd.data import EpochSampler, TileDataset, collate, fit_modalities, known_modalities, split_tiles
from hetecd.errors import CheckpointError, ConfigError, InputError, OutputError
from hetecd.files import replacing
from hetecd.folders import TileFiles
from hetecd.info import ModelInfo
from hetecd.metrics import Confusion, confusion
from hetecd.modality import STRIDE_PX, Modality
from hetecd.model import Features, HeteCD
from hetecd.ops import keep_memory
from hetecd.residual import RESIDUAL
from hetecd.resume import SafetensorsIO
from hetecd.weights import fresh, load, precision_on, save

log = logging.getLogger("hetecd")

Tensors = tuple[Tensor, ...] | list[Tensor]

FEW_STEPS = 2000  # without weights to start from; a network of one scene is much better after 3500 than after 880
MOST_OVERFLOWS = 20
MOST_WORKERS = 8  # per GPU: each reads and varies some hundred tiles of 256 px a second
BEST, LAST, STATE, LOG = "best.safetensors", "last.safetensors", "state.safetensors", "log.csv"


@dataclass(frozen=True)
class Hardware:
    """Where a training runs; the names are Lightning's.

    Attributes:
        accelerator: "auto", "cpu", "gpu", ...
        devices: per node; 0 = all there are. More than one multiplies the batch.
        nodes: number of machines.
        strategy: "auto", "ddp", ...
    """

    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    strategy: str = "auto"


def fit(
    data: Path | str,
    out: Path | str,
    model_config: ModelConfig | None = None,
    config: TrainConfig | None = None,
    resume: bool = False,
    hardware: Hardware | None = None,
) -> Path:
    """Train a network and return the path of its best checkpoint.

    ``out`` receives ``best.safetensors`` (highest validation IoU; the last epoch where nothing is validated),
    ``last.safetensors``, ``log.csv`` (a line per epoch), ``state.safetensors`` (what ``resume`` needs) and TensorBoard
    logs. The first four are replaced after each epoch, each as a whole and in this order, so an interruption or a full
    disk leaves usable ones.

    Args:
        data: folder with ``train`` tiles (see :func:`hetecd.data.find_tiles`) and, if there is one, ``val``.
        out: folder for the results.
        model_config: the network; channels are taken from the data. Default: as published.
        config: the training.
        resume: go on after the last whole epoch in ``out``; on a CPU this ends with the very weights that a training
            without interruption has.
        hardware: where to run.

    Raises:
        InputError: the data cannot be used.
        ConfigError: Lightning cannot provide the hardware.
        CheckpointError: nothing to resume in ``out``, or other settings or data than before.
        OutputError: ``out`` cannot be written, or holds a training and ``resume`` is False.
    """
    keep_memory()
    out, config, hardware = Path(out), config or TrainConfig(), hardware or Hardware()
    config = dataclasses.replace(config, workers=loader_workers(config.workers, hardware))
    _check_unused(out, resume)
    train_files, val_files, note = split_tiles(data, config)
    log.info(note)
    optical, sar = _contracts(train_files, config)
    model_config = dataclasses.replace(
        model_config or ModelConfig(), optical_channels=optical.channels, sar_channels=sar.channels
    )
    recipe = asdict(model_config) | asdict(config)
    name = Path(data).resolve().name
    origin = f"{name}: {len(train_files)} training tiles; {note.replace(str(data), name)}"  # no path of this machine
    info = ModelInfo(
        model=model_config, optical=optical, sar=sar, before_is=config.before_is, recipe=recipe,
        data=origin, licence=config.data_licence,
    )  # fmt: skip
    train_tiles = TileDataset(train_files, config, optical, sar, augment)
    if not train_tiles.has_change:
        raise InputError(f"{data}: found no changed pixel in {len(train_files)} training labels, expected some")
    val_tiles = TileDataset(val_files, config, optical, sar)
    if config.calibrate and not val_tiles.has_change:
        raise InputError(f"calibrate: found no changed pixel in {len(val_files)} held-out labels; set it to false")
    network = fresh(model_config, config.seed, config.encoder_weights, config.start_from)
    training = Training(network, config, info, train_tiles, val_tiles)
    _check_writable(out)
    try:
        trainer = _trainer(out, config, hardware)
    except (MisconfigurationException, ModuleNotFoundError, TypeError, ValueError) as error:
        raise ConfigError(f"hardware: {' '.join(str(error).split())}") from error
    with warnings.catch_warnings():
        # Lightning recommends loader workers on two cores, where none is faster, and writes about its own internals.
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
        try:
            trainer.fit(training, ckpt_path=out / STATE if resume else None)
        except SystemExit:  # what Lightning makes of Ctrl-C, after which it ignores the next one
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from None
    if config.calibrate and trainer.is_global_zero:
        _calibrate(out / BEST, training.val_tiles)
    return out / BEST


class Training(pl.LightningModule):
    """Losses, metrics, optimiser and loaders of one training."""

    def __init__(
        self, model: HeteCD, config: TrainConfig, info: ModelInfo, train_tiles: TileDataset, val_tiles: TileDataset
    ) -> None:
        super().__init__()
        self.model, self.config, self.info = model, config, info
        self.train_tiles, self.val_tiles = train_tiles, val_tiles
        self.average: AveragedModel | None = None
        if config.ema:
            self.average = AveragedModel(model, multi_avg_fn=running_mean(config.ema), use_buffers=True)
            self.average.requires_grad_(False)
        self.confusion = Confusion()
        self.scores = self.confusion.scores()  # NaN until tiles were validated
        self.best = -math.inf
        self.overflows = 0

    @property
    def result(self) -> HeteCD:
        """The network that is validated and kept: the running mean where there is one."""
        return self.model if self.average is None else cast(HeteCD, self.average.module)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """Loss of one batch."""
        # All chance is a function of (seed, epoch, step, rank) alone, so that a resumed training is the same one.
        key = (self.config.seed, self.current_epoch, index, self.global_rank)
        seeds = np.random.SeedSequence(key).generate_state(2).tolist()
        torch.manual_seed(seeds[0])
        if self.config.cutmix:
            cutmix(batch, self.config.cutmix, torch.Generator().manual_seed(seeds[1]))
        _check_statistics(self.info.model, batch["label"])
        logits, features = self.model(batch["optical"], batch["sar"], features=True)
        terms = self._terms(logits, features, batch["label"])
        loss = torch.stack(list(terms.values())).sum()
        size = len(batch["label"])
        self.log("step", loss, prog_bar=True, logger=False, batch_size=size)
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, batch_size=size, sync_dist=True)
        self.log_dict(
            {f"loss_{name}": term for name, term in terms.items()},
            on_step=False, on_epoch=True, batch_size=size, sync_dist=True,
        )  # fmt: skip
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        """Take the new weights into the running mean."""
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _terms(self, logits: Tensor, features: Features, label: Tensor) -> dict[str, Tensor]:
        config = self.config
        terms = segmentation_terms(logits, label, config)
        if features.scales:
            terms["deep"] = config.deep_weight * losses.deep_supervision(features.scales, label)
        # A blanked date has nothing to be aligned with.
        if config.fca_weight and self.info.model.modalities == "both":
            published = config.alignment == "published"
            align = losses.fca_loss(features) if published else losses.label_aware_alignment(features, label)
            terms["fca"] = fca_weight(config, self.current_epoch) * align
        return terms

    def validation_step(self, batch: dict[str, Tensor], _index: int) -> None:
        """Count pixels of one batch."""
        logits = self.result(batch["optical"], batch["sar"])
        if not logits.isfinite().all():  # running statistics do not recover from one such batch
            raise InputError(f"training: the network gives no finite numbers any more; lower lr ({self.config.lr:g})")
        loss = losses.cross_entropy(logits, batch["label"], self.config.val_ce_weights)
        counted = int((batch["label"] != IGNORE).flatten(1).any(1).sum())  # a tile repeated to fill up a rank does not
        self.log("val_loss", loss, batch_size=max(1, counted), sync_dist=True)
        changed = logits[:, 1] > logits[:, 0]
        self.confusion += confusion(changed.cpu().numpy(), batch["label"].cpu().numpy())

    def on_validation_epoch_end(self) -> None:
        """Score the pooled counts of all devices."""
        counts = torch.tensor(dataclasses.astuple(self.confusion), device=self.device, dtype=torch.int64)
        pooled = torch.as_tensor(self.all_gather(counts)).reshape(-1, 4).sum(0).tolist()
        self.confusion = Confusion()
        self.scores = Confusion(*pooled).scores()
        self.log("val_iou", self.scores["iou"], prog_bar=True, rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        """AdamW; linear warm-up, then a polynomial decline, per step."""
        config = self.config
        groups = parameter_groups(self.model, config)
        optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)
        steps = int(self.trainer.estimated_stepping_batches)
        if steps < FEW_STEPS and not (config.start_from or config.encoder_weights) and self.trainer.is_global_zero:
            log.info(f"steps: {steps} in all, which is few; more epochs (--epochs) give better maps")
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(config, step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Clip; leave out a step whose gradient overflowed, as one tile without any signal can make it.

        Raises:
            InputError: that happened 20 times in a row.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.config.clip or math.inf)
        self.overflows = 0 if norm.isfinite() else self.overflows + 1
        if self.overflows:
            optimizer.zero_grad()
        if self.overflows >= MOST_OVERFLOWS:
            raise InputError(
                f"training: the gradient is not finite for {MOST_OVERFLOWS} steps in a row; lower lr (now "
                f"{self.config.lr:g}), use precision f32, or look for images of one value"
            )

    def train_dataloader(self) -> DataLoader:
        """Augmented tiles in a new order every epoch."""
        return self._loader(self.train_tiles, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """Whole tiles in order."""
        return self._loader(self.val_tiles, shuffle=False)

    def _loader(self, tiles: TileDataset, shuffle: bool) -> DataLoader:
        config, trainer = self.config, self.trainer
        sampler = EpochSampler(len(tiles), config.seed, shuffle, trainer.global_rank, trainer.world_size)
        return DataLoader(
            tiles, config.batch, sampler=sampler, collate_fn=collate, num_workers=config.workers,
            persistent_workers=config.workers > 0, pin_memory=self.device.type == "cuda",
            # A last batch of a few tiles would only disturb the batch statistics.
            drop_last=shuffle and len(sampler) > config.batch,
        )  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what resuming needs beside Lightning's own state."""
        checkpoint["hetecd"] = {"best": self.best, **self._identity()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with other settings or data.

        Raises:
            CheckpointError: names what differs.
        """
        before, now = checkpoint["hetecd"], self._identity()
        recipes = asdict(ModelConfig()) | asdict(TrainConfig()) | before["recipe"], now["recipe"]  # newer keys: default
        changed = [f"{k} {recipes[0][k]} -> {recipes[1][k]}" for k in recipes[1] if recipes[0][k] != recipes[1][k]]
        if changed:
            longer = "; to train longer, start from its weights in another folder (--start-from)"
            raise CheckpointError(
                f"resume: settings differ from before ({', '.join(changed)}); use those of before"
                + (longer if recipes[0]["epochs"] != recipes[1]["epochs"] else "")
            )
        if any(before[key] != now[key] for key in ("optical", "sar", "tiles")):
            raise CheckpointError("resume: the tiles in --data are not those of before; use those, or start anew")
        self.best = before["best"]

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a training to go on."""
        names = "\n\n".join("\n".join(f.name for f in tiles.files) for tiles in (self.train_tiles, self.val_tiles))
        recipe = deciding(self.info.recipe)
        tiles = hashlib.sha256(names.encode()).hexdigest()
        return {"recipe": recipe, "optical": asdict(self.info.optical), "sar": asdict(self.info.sar), "tiles": tiles}


class Keep(Callback):
    """After each epoch: log line, checkpoints, state."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.start = time.monotonic()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self.start = time.monotonic()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write everything, best first."""
        task = pl_module
        assert isinstance(task, Training)
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}  # gathers: on every rank
        iou = task.scores["iou"]
        tells = task.val_tiles.has_change and not math.isnan(iou)
        better = tells and iou > task.best
        if better:
            task.best = iou
        elif not tells and len(task.val_tiles):
            log.warning("validation: no changed pixel that counts, so the last epoch counts as the best")
        if trainer.is_global_zero:
            scores = {k: None if math.isnan(v) else round(v, 6) for k, v in task.scores.items()}
            info = dataclasses.replace(task.info, scores=scores | {"epoch": trainer.current_epoch})
            if better or not tells:
                save(self.out / BEST, task.result, info)
            save(self.out / LAST, task.result, info)
            self._write_line(trainer, metrics, scores)
        trainer.save_checkpoint(self.out / STATE)

    def _write_line(self, trainer: pl.Trainer, metrics: dict[str, float], scores: dict[str, float | None]) -> None:
        epoch = trainer.current_epoch
        row: dict[str, Any] = {"epoch": epoch, "seconds": round(time.monotonic() - self.start, 1)}
        row["lr"] = f"{trainer.optimizers[0].param_groups[0]['lr']:.3g}"
        row |= {key: round(metrics[key], 5) for key in sorted(metrics) if key not in ("val_iou", "step")}
        row |= {f"val_{name}": value for name, value in scores.items()}
        path = self.out / LOG
        rows: list[dict[str, Any]] = []
        if epoch and path.exists():  # a line of this epoch is there if the last run ended before it wrote its state
            with path.open(newline="", encoding="utf-8") as file:
                rows = [line for line in csv.DictReader(file) if int(line["epoch"]) < epoch]
        with replacing(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            # An older version may have written columns of its own.
            writer = csv.DictWriter(file, list(dict.fromkeys(name for line in (row, *rows) for name in line)))
            writer.writeheader()
            writer.writerows([*rows, row])
        log.info(
            "epoch %d/%d  loss %.4f  val IoU %s  %.0f s",
            epoch + 1, trainer.max_epochs, row["loss"], scores["iou"], row["seconds"],
        )  # fmt: skip


def _check_statistics(config: ModelConfig, label: Tensor) -> None:
    """Refuse what torch's BatchNorm would: a coarsest map of one pixel, of one tile."""
    if config.encoder not in RESIDUAL and len(label) == 1 and max(label.shape) <= STRIDE_PX:
        raise ConfigError(
            f"batch: found 1 tile of at most {STRIDE_PX} px, of which {config.encoder} leaves one pixel at its "
            "coarsest scale, expected more for batch statistics; use larger batches or tiles"
        )


def segmentation_terms(logits: Tensor, label: Tensor, config: TrainConfig) -> dict[str, Tensor]:
    """The losses of the map alone, weighted: logits (B, 2, H, W), label (B, H, W)."""
    dice = losses.soft_dice if config.dice == "soft" else losses.released_dice
    terms = {
        "ce": losses.cross_entropy(logits, label, config.ce_weights),
        "dice": config.dice_weight * dice(logits, label),
    }
    if config.lovasz_weight:
        terms["lovasz"] = config.lovasz_weight * losses.lovasz_hinge(logits, label)
    return terms


def parameter_groups(model: torch.nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """The parameters that decay and, if there are any, those that do not, as an optimiser takes them."""
    decayed = [p for p in model.parameters() if p.ndim > 1 or config.decay == "all"]
    free = [p for p in model.parameters() if not (p.ndim > 1 or config.decay == "all")]
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    return [*groups, {"params": free, "weight_decay": 0.0}] if free else groups


def loader_workers(workers: int, hardware: Hardware) -> int:
    """Processes that read tiles for each device: as asked for, or, for -1, chosen by what trains."""
    if workers >= 0:
        return workers
    gpus = torch.cuda.device_count() if hardware.accelerator in ("auto", "gpu", "cuda") else 0
    if not gpus:
        return 0
    used = min(gpus, hardware.devices) if hardware.devices > 0 else gpus
    return max(1, min(MOST_WORKERS, usable_cores() // used - 1))


def usable_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def running_mean(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """An update of averaged tensors, in place; early on new values count more, so that the first ones are forgotten."""

    def update(averages: Tensors, values: Tensors, count: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, values, share)
        else:  # batches seen
            torch._foreach_copy_(averages, values)

    return update


def fca_weight(config: TrainConfig, epoch: int) -> float:
    """Weight of the alignment in an epoch counted from 0."""
    if config.fca_schedule == "decay":
        return config.fca_weight / (epoch + 1)
    return config.fca_weight * ((epoch + 1) / config.epochs if config.fca_schedule == "ramp" else 1.0)


def lr_factor(config: TrainConfig, step: int, steps: int) -> float:
    """Share of the peak learning rate at a step counted from 0."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    return (1 - (step - warmup) / max(1, steps - warmup)) ** config.lr_power


def _contracts(files: Sequence[TileFiles], config: TrainConfig) -> tuple[Modality, Modality]:
    """What optical and SAR images must look like: as the weights to start from know them, or fitted to the tiles."""
    if not config.start_from:
        return fit_modalities(files, config)
    info = load(config.start_from).info
    assert info is not None
    if info.before_is != config.before_is:
        raise ConfigError(f"start_from: found {info.before_is} as the earlier date there; set before_is to that")
    return known_modalities(files, config, info.optical, info.sar)


def _calibrate(path: Path, tiles: TileDataset) -> None:
    model = load(path)
    assert model.info is not None
    if model.info.calibration != (1.0, 0.0):  # a finished training was resumed
        return
    found = calibrate_to(path, model, tiles)
    log.info(
        "calibrated on the held-out tiles: logit x %.2f %+.2f, threshold %.2f; IoU %.4f, before %.4f",
        found.slope, found.offset, found.threshold, found.iou, found.iou_before,
    )  # fmt: skip


def _check_unused(out: Path, resume: bool) -> None:
    left = [name for name in (STATE, BEST, LAST) if (out / name).exists()]
    if STATE in left:
        if not resume:
            raise OutputError(
                f"{out}: holds a training already ({STATE}); go on with --resume or choose another folder"
            )
    elif left:  # as after a kill in the first epoch, or where somebody kept the weights alone
        raise (CheckpointError if resume else OutputError)(
            f"{out}: found {left[0]} but no {STATE} to go on from; remove {' and '.join(left)} and start without "
            "--resume, or choose another folder"
        )
    elif resume:
        raise CheckpointError(f"{out}: found no {STATE}, expected a training to resume; start without --resume")


def _check_writable(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise OutputError(f"{out}: cannot write here ({error.strerror}); choose another folder") from error


def _trainer(out: Path, config: TrainConfig, hardware: Hardware) -> pl.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    terminal = sys.stderr.isatty()
    kind = "cpu" if hardware.accelerator == "cpu" or not torch.accelerator.is_available() else hardware.accelerator
    return pl.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices or "auto",
        num_nodes=hardware.nodes,
        strategy=hardware.strategy,
        precision="bf16-mixed" if precision_on(kind, config.precision) == "bf16" else "32-true",
        max_epochs=config.epochs,
        gradient_clip_val=1.0,  # any value makes Lightning call configure_gradient_clipping, which does it
        callbacks=[Keep(out), *([TQDMProgressBar()] if terminal else [])],
        plugins=[SafetensorsIO()],
        # Ctrl-C in the middle of a log line makes the end wait for the next time that the writer flushes by itself.
        logger=TensorBoardLogger(out, name="tensorboard", version="", flush_secs=5),
        enable_progress_bar=terminal,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        log_every_n_steps=10,
    )
