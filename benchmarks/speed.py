"""How fast the network is against a plain transcription of the published one: `make bench-speed`.

Same weights, same run, same thread count. Every variant lives in a process of its own, so that each has the memory
allocator its user would have; the repetitions alternate between the variants, because machines are noisy and only
ratios hold. Prints Markdown tables.
"""

import argparse
import multiprocessing
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from plain import PlainHeteCD
from torch import Tensor, nn

from hetecd.config import checked, configs, read_recipe
from hetecd.convert import convert_hetecd
from hetecd.export import Precision, Target, export_file
from hetecd.info import ModelInfo
from hetecd.losses import cross_entropy, fca_loss, soft_dice
from hetecd.modality import Modality
from hetecd.model import HeteCD
from hetecd.ops import freeze, keep_memory
from hetecd.runtime import Runtime, open_graph
from hetecd.synth import write_tiles
from hetecd.weights import save

DEFAULT = Path(__file__).resolve().parents[1] / "recipes" / "default.yaml"
TABLES = {
    # title: (inference or training, batch, edge in px, unit of the rate)
    "Inference, 512 x 512, batch 1": ("inference", 1, 512, "Mpx/s"),
    "Training step, 256 x 256, batch 2": ("training", 2, 256, "samples/s"),
}
ROWS = {
    # name: (network, type, keep memory); the first is the yardstick
    "plain, float32": ("plain", torch.float32, False),
    "plain, float32, memory kept": ("plain", torch.float32, True),
    "plain, bf16": ("plain", torch.bfloat16, False),
    "ours, float32": ("ours", torch.float32, True),
    "ours, bf16": ("ours", torch.bfloat16, True),
    "`default` network, float32": ("default", torch.float32, True),
    "`default` network, bf16": ("default", torch.bfloat16, True),
}
HALF = {  # rows of inference on a GPU
    "plain, f16": ("plain", torch.float16, False),
    "ours, f16": ("ours", torch.float16, False),
    "`default` network, f16": ("default", torch.float16, False),
}
COMPILED = {"`default` network, bf16, compiled": ("default, compiled", torch.bfloat16, True)}  # with --compile
GRAPHS: dict[str, tuple[Target, Precision]] = {  # rows of exported graphs, for inference only
    "OpenVINO, float32": ("openvino", "f32"),
    "OpenVINO, bf16": ("openvino", "bf16"),
    "OpenVINO, int8": ("openvino", "int8"),
    "ONNX Runtime, float32": ("onnx", "f32"),
}
# What the images of the table are in a file, so that int8 can be calibrated on our synthetic scenes.
OPTICAL = Modality((1, 2, 3), (0.0,) * 3, (3000.0,) * 3, unit="reflectance x 10000")
SAR = Modality((1, 1, 1), (0.0,) * 3, (0.3,) * 3, unit="linear power")


@dataclass
class Variant:
    """One row: its process and what was measured."""

    name: str
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    result: NDArray[np.float32]
    first_mb: float
    added_mb: float
    seconds: list[float] = field(default_factory=list)

    @property
    def median_ms(self) -> float:
        """Milliseconds of the middle repetition."""
        return 1000 * statistics.median(self.seconds)


def images(batch: int, edge_px: int, sar_channels: int = 3) -> tuple[Tensor, Tensor]:
    """Blocks at two scales plus noise: unlike plain noise they give logits of both signs."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, 6, edge_px // 16, edge_px // 16, generator=generator)
    both = nn.functional.interpolate(coarse, scale_factor=16) * 0.7
    both = both + 0.3 * torch.rand(batch, 6, edge_px, edge_px, generator=generator)
    return both[:, :3].contiguous(), both[:, 3 : 3 + sar_channels].contiguous()


def weights() -> dict[str, Tensor]:
    """Released names; drawn so that every part of the network matters (see the comment)."""
    torch.manual_seed(0)
    net = PlainHeteCD()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            # The published initialisation leaves the difference block without signal; a trained network has one.
            if name.endswith("fuse_conv.0.weight"):
                parameter.mul_(256)
            elif name.endswith("make_pred_bcd.0.bias"):
                parameter.add_(1)
    return net.state_dict()


def network(kind: str) -> nn.Module:
    """One of the three networks of the table; the first call of a compiled one takes minutes."""
    if kind.startswith("default"):
        torch.manual_seed(0)
        default = without_dropout(HeteCD(configs(checked(read_recipe(DEFAULT), DEFAULT.name))[0]))
        if kind.endswith("compiled"):
            default.compile()
        return default
    if kind == "ours":
        return without_dropout(convert_hetecd(weights()))
    net = PlainHeteCD()
    net.load_state_dict(weights())
    return net


def inference(net: nn.Module, pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> Callable[[], Tensor]:
    """One forward pass to probabilities; our own network as `hetecd predict` runs it."""
    net.eval()
    if isinstance(net, HeteCD):
        net = freeze(net, dtype)

    def run() -> Tensor:
        with torch.inference_mode(), torch.autocast(pair[0].device.type, dtype, enabled=dtype != torch.float32):
            logits = net(*pair)
        return (logits[0] if isinstance(logits, tuple) else logits).float().softmax(1)[:, 1]

    return run


def graph(path: Path, runtime: Runtime, pair: tuple[Tensor, Tensor]) -> Callable[[], Tensor]:
    """One call of an exported graph, scaling included."""
    predictor, _ = open_graph(path, runtime)
    optical, sar = (3000 * pair[0]).numpy(), (0.3 * pair[1]).numpy()
    return lambda: torch.from_numpy(predictor(optical, sar))


def export_all(folder: Path) -> None:
    """Write every graph of the table; each is compared with torch as `hetecd export` does it."""
    checkpoint, data = folder / "net.safetensors", folder / "tiles"
    net = convert_hetecd(weights())
    save(checkpoint, net, ModelInfo(net.config, OPTICAL, SAR))
    write_tiles(data, "train", range(4), 256)
    for row, (to, precision) in GRAPHS.items():
        export_file(checkpoint, _file(folder, row), to, precision, data)


def _file(folder: Path, row: str) -> Path:
    to, precision = GRAPHS[row]
    return folder / f"{precision}.{'onnx' if to == 'onnx' else 'xml'}"


def step(
    net: nn.Module, optimizer: torch.optim.Optimizer, images: tuple[Tensor, Tensor], label: Tensor, bf16: bool,
    fca_weight: float = 1.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A training step of ours or of the plain network: forward, the three losses, backward, update; loss, logits."""
    optimizer.zero_grad()
    with torch.autocast(label.device.type, torch.bfloat16, enabled=bf16):
        logits, features = net(*images, features=True) if isinstance(net, HeteCD) else net(*images)
    loss = cross_entropy(logits, label) + soft_dice(logits, label) + fca_weight * fca_loss(features)
    loss.backward()
    optimizer.step()
    return loss.detach(), logits.detach()


def training(net: nn.Module, pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> Callable[[], Tensor]:
    """One training step with AdamW, to probabilities."""
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=isinstance(net, HeteCD))
    label = (pair[0][:, 0] > 0.5).long()
    return lambda: step(net, optimizer, pair, label, dtype == torch.bfloat16)[1].float().softmax(1)[:, 1]


def work(pipe: Connection, row: str, table: str, threads: int, folder: Path, device: str) -> None:
    """What the process of a variant does: make it, say what its first call gave, then run it whenever told to."""
    torch.set_num_threads(threads)
    task, batch, edge_px, _ = TABLES[table]
    pair = images(batch, edge_px)
    if row in GRAPHS:
        run, keep = graph(_file(folder, row), GRAPHS[row][0], pair), False
    else:
        kind, dtype, keep = (ROWS | HALF | COMPILED)[row]
        pair = pair[0].to(device), pair[1].to(device)
        run = (inference if task == "inference" else training)(network(kind).to(device), pair, dtype)
    result, first_mb = added_mb(run, device)
    _, again_mb = added_mb(run, device)
    if keep:  # not before: memory that was kept could not be told from memory that is needed
        keep_memory()
        run()
    pipe.send((result.cpu().numpy(), first_mb, again_mb))
    while pipe.recv():
        start = now(device)
        run()
        pipe.send(now(device) - start)


def now(device: str) -> float:
    """Seconds on a clock, when the device has done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def added_mb(run: Callable[[], Tensor], device: str) -> tuple[Tensor, float]:
    """Result of a call and the memory in MB that it adds at its peak; NaN where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        result = run()
        return result, (torch.cuda.max_memory_allocated() - held) / 2**20
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")
        before = int(re.findall(r"VmRSS:\s+(\d+)", status.read_text())[0])
        result = run()
        return result, (int(re.findall(r"VmHWM:\s+(\d+)", status.read_text())[0]) - before) / 1024
    except (OSError, IndexError):
        return run(), float("nan")


def measure(table: str, rows: list[str], repetitions: int, threads: int, folder: Path, device: str) -> list[Variant]:
    """Start a process per row and time them in turn."""
    context = multiprocessing.get_context("spawn")
    variants = []
    for row in rows:
        pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, row, table, threads, folder, device), daemon=True)
        process.start()
        theirs.close()  # so that the end of a process is the end of its pipe
        variants.append(Variant(row, process, pipe, *pipe.recv()))
    for _ in range(repetitions):
        for variant in variants:
            time.sleep(0.3)  # until the threads of the last one have gone to sleep
            variant.pipe.send(True)
            variant.seconds.append(variant.pipe.recv())
    for variant in variants:
        variant.pipe.send(False)
        variant.process.join()
    return variants


def show(title: str, variants: list[Variant]) -> None:
    """Print one table; the first variant is the yardstick."""
    yardstick = variants[0]
    task, batch, edge_px, unit = TABLES[title]
    count = batch if task == "training" else batch * edge_px**2 / 1e6
    print(f"\n{title}\n\n| | ms | times as fast | {unit} | added MB | first call | max difference | same decision % |")
    print("|---|---|---|---|---|---|---|---|")
    for v in variants:
        difference, agree = "other network", ""
        if "default" not in v.name:
            difference = f"{np.abs(v.result - yardstick.result).max():.2g}"
            agree = f"{100 * ((v.result > 0.5) == (yardstick.result > 0.5)).mean():.2f}"
        rate = 1000 * count / v.median_ms
        times = f"{v.median_ms:.0f} | {yardstick.median_ms / v.median_ms:.2f} | {rate:.3g}"
        print(f"| {v.name} | {times} | {v.added_mb:.0f} | {v.first_mb:.0f} | {difference} | {agree} |", flush=True)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--task", choices=["inference", "training", "both"], default="both")
    parser.add_argument("--compile", action="store_true", help="add the default network through torch.compile")
    device_argument(parser)
    args = parser.parse_args()
    check_device(args.device)
    print(f"torch {torch.__version__}, {args.threads} threads, {processor(args.device)}, medians of {args.repetitions}")
    rows = {"inference": [*ROWS, *(GRAPHS if args.device == "cpu" else HALF)], "training": [*ROWS]}
    if args.compile:
        rows = {task: [*names, *COMPILED] for task, names in rows.items()}
    if args.device == "cuda":
        rows = {task: [name for name in names if "memory kept" not in name] for task, names in rows.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.task != "training" and args.device == "cpu":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                pool.apply(export_all, (folder,))
        for title, (task, *_) in TABLES.items():
            if args.task in (task, "both"):
                show(title, measure(title, rows[task], args.repetitions, args.threads, folder, args.device))
    print(
        "\nadded MB: at the peak of the second call; first call: with all that is made once, such as prepared weights"
    )
    print("max difference: of the probability of change")


def without_dropout(net: HeteCD) -> HeteCD:
    """The plain transcription has no dropout; neither has what is compared with it."""
    for module in net.modules():
        for name in ("dropout", "drop_path"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0
    return net


def device_argument(parser: argparse.ArgumentParser) -> None:
    """What to measure on; :func:`check_device` says whether it is there."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")


def check_device(device: str) -> None:
    """End the program where there is no such device."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: found cuda, but torch can use no GPU here; expected cpu")


def processor(device: str = "cpu") -> str:
    """Name of the CPU or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        return re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[0]
    except (OSError, IndexError):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
