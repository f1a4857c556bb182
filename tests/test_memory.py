"""The batch follows from what is free."""

import psutil
import pytest

from hetecd import memory
from hetecd.memory import MOST_ON_CPU, fitting_batch, free_ram_bytes


def test_free_memory_is_what_others_find(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert free_ram_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)


@pytest.mark.parametrize(("limit", "expected"), [("300000000", 200_000_000), ("50000000", 0), ("max", None)])
def test_a_container_has_less(monkeypatch, tmp_path, limit, expected):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(limit + "\n")
    (tmp_path / "memory.current").write_text("130000000\n")
    (tmp_path / "memory.stat").write_text(
        "anon 90000000\nfile 40000000\ninactive_file 30000000\nactive_file 10000000\n"
    )
    assert free_ram_bytes() == expected or (expected is None and free_ram_bytes() > 200_000_000)


@pytest.mark.parametrize(
    ("free_bytes", "tile_px", "batch"), [(64e9, 256, 8), (2e9, 256, 3), (0, 256, 1), (2e9, 64, 8), (64e9, 512, 2)]
)
def test_batch(monkeypatch, free_bytes, tile_px, batch):
    monkeypatch.setattr(memory, "free_ram_bytes", lambda: int(free_bytes))
    assert fitting_batch(tile_px, "cpu") == batch <= MOST_ON_CPU
