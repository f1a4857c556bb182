"""How much memory is free, and how many windows fit into it."""

import os
import sys
from pathlib import Path
from typing import Any

# What a network needs per pixel of a window, on the safe side: measured in float32 are 3300 with `paper.yaml`, the
# largest, and 300 with `default.yaml`.
WINDOW_BYTES_PER_PX = 4000
MOST_ON_CPU = 8  # windows of up to 256 px; more, or as many that are larger, are no faster there
MOST_ON_GPU = 64
CGROUP = Path("/sys/fs/cgroup")


def fitting_batch(tile_px: int, device: str = "auto") -> int:
    """Windows to give to a predictor at a time: those that fit into half of the free memory, and no more than help.

    Args:
        tile_px: edge of a window.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one.
    """
    free_bytes, most = free_ram_bytes(), MOST_ON_CPU
    if torch_takes_gpu(device):
        torch: Any = sys.modules["torch"]
        free_bytes, most = torch.cuda.mem_get_info(None if device == "auto" else device)[0], MOST_ON_GPU
    most = min(most, most * 256**2 // tile_px**2)
    return max(1, min(most, free_bytes // 2 // (WINDOW_BYTES_PER_PX * tile_px**2)))


def torch_takes_gpu(device: str) -> bool:
    """Whether torch, where it is imported, computes on a GPU; "auto" takes one if there is one."""
    torch: Any = sys.modules.get("torch")  # not there where a graph is computed without it
    return torch is not None and device != "cpu" and torch.cuda.is_available()


def free_ram_bytes() -> int:
    """Memory that this process may still take, also within a container."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free_bytes = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        free_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit == "max":
            return free_bytes
        kinds = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        given_up = int(kinds["inactive_file"])  # files read a while ago, which count as used until somebody needs it
        return min(free_bytes, max(0, int(limit) - int(used) + given_up))
    except (OSError, ValueError, KeyError):
        return free_bytes
