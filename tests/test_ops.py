"""The fast forms give what PyTorch's own give."""

import copy
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hetecd import ops
from hetecd.config import ModelConfig
from hetecd.model import HeteCD
from hetecd.ops import Conv3x3, Linear, attend, freeze, lower

DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
RTOL = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def _close(
    found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype, times: float = 1.0, terms: torch.Tensor | None = None
) -> None:
    """Close in units of the largest value, as sums of many terms are; of the largest of ``terms``, where given."""
    assert found.dtype == dtype
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= times * RTOL[dtype] * (wanted if terms is None else terms).abs().max()


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3), h=st.integers(1, 9), w=st.integers(1, 9), channels=st.integers(1, 70),
    out=st.integers(1, 70), dtype=DTYPES,
)  # fmt: skip
def test_linear_layer(B: int, h: int, w: int, channels: int, out: int, dtype: torch.dtype) -> None:
    torch.manual_seed(B * h * w + channels)
    layer = Linear(channels, out)
    x = torch.randn(B, h, w, channels)
    wanted = nn.Linear.forward(copy.deepcopy(layer).double(), x.double())
    with torch.no_grad():
        found = layer.to(dtype)(x.to(dtype))
    _close(found, wanted, dtype)
    assert found.is_contiguous()


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3), heads=st.integers(1, 5), n=st.integers(1, 60), m=st.integers(1, 60), dtype=DTYPES,
    scores=st.sampled_from([1, 500, ops.SCORES]), masked=st.booleans(), registers=st.booleans(),
)  # fmt: skip
def test_attention(
    B: int, heads: int, n: int, m: int, dtype: torch.dtype, scores: int, masked: bool, registers: bool
) -> None:
    torch.manual_seed(n)
    query, key, value = (torch.randn(B, heads, size, 32) for size in (n, m, m))
    seen = (torch.rand(n, m) < 0.5) | (torch.arange(m) == 0) if masked else None
    wanted = F.scaled_dot_product_attention(query.double(), key.double(), value.double(), seen)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(ops, "SCORES", scores)
        patch.setattr(ops, "MATRIX_REGISTERS", registers)
        _close(attend(query.to(dtype), key.to(dtype), value.to(dtype), seen=seen), wanted, dtype)


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3), h=st.integers(1, 24) | st.sampled_from(range(2, 25, 2)),
    w=st.integers(1, 24) | st.sampled_from(range(4, 25, 4)), channels=st.integers(4, 300),
    dtype=DTYPES, block=st.sampled_from([1, 2**14, ops.BLOCK]), autocast=st.booleans(), bias=st.booleans(),
)  # fmt: skip
def test_wide_convolution(
    B: int, h: int, w: int, channels: int, dtype: torch.dtype, block: int, autocast: bool, bias: bool
) -> None:
    torch.manual_seed(h)
    conv = Conv3x3(channels, 7)
    if not bias:
        conv.bias = None
    x = torch.randn(B, channels, h, w)
    wanted = F.conv2d(x.double(), conv.weight.double(), None if conv.bias is None else conv.bias.double(), padding=1)
    if autocast:
        dtype = torch.bfloat16
        lower(conv)
    else:
        conv, x = conv.to(dtype), x.to(dtype)
    conv.freeze()
    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), torch.autocast("cpu", enabled=autocast):
        patch.setattr(ops, "BLOCK", block)
        patch.setattr(ops, "SMALL", 1)
        # Winograd costs bfloat16 two bits, and few channels average nothing out.
        _close(conv(x), wanted, dtype, times=2.0 if dtype == torch.bfloat16 else 1.0)


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 3), h=st.integers(1, 20), w=st.integers(1, 20), groups=st.integers(1, 70),
    each=st.sampled_from([1, 2, 18]), size=st.sampled_from([1, 3, 5, 7]), dtype=DTYPES, grad=st.booleans(),
    fused=st.sampled_from([ops.FUSED, None]),
)  # fmt: skip
def test_convolution_with_gelu(
    B: int, h: int, w: int, groups: int, each: int, size: int, dtype: torch.dtype, grad: bool, fused: Any
) -> None:
    torch.manual_seed(h * w)
    x = torch.randn(B, groups * each, h, w).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(groups, each, size, size).to(dtype), torch.randn(groups).to(dtype)
    wanted = F.gelu(F.conv2d(x.double(), weight.double(), bias.double(), padding=size // 2, groups=groups))
    # GELU turns a sum of large terms into a number near 0.
    terms = F.conv2d(x.double().abs(), weight.double().abs(), bias.double().abs(), padding=size // 2, groups=groups)
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(grad):
        patch.setattr(ops, "FUSED", fused)
        _close(ops.conv_gelu(x, weight, bias, groups), wanted, dtype, terms=terms)


@settings(max_examples=25, deadline=None)
@given(h=st.integers(1, 40), w=st.integers(1, 9), strip=st.sampled_from([1, 30, ops.STRIP]), grad=st.booleans())
def test_in_strips(h: int, w: int, strip: int, grad: bool) -> None:
    """A map and one of twice its size to one of twice its size, at most a row cut at once and at least all of them."""
    torch.manual_seed(h)
    fine, coarse = torch.randn(2, 3, 2 * h, 2 * w).double(), torch.randn(2, 3, h, w).double()
    kernel = torch.randn(3, 3, 3, 3).double()
    calls = []

    def compute(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        calls.append(x.shape[2])
        return F.conv2d(F.interpolate(F.conv2d(x, kernel, padding=1), scale_factor=2) + y, kernel, padding=1)

    wanted = compute(coarse, fine)
    with pytest.MonkeyPatch.context() as patch, torch.set_grad_enabled(grad):
        patch.setattr(ops, "STRIP", strip)
        found = ops.in_strips(compute, (coarse, fine), halo=2)
    torch.testing.assert_close(found, wanted)
    rows = max(2, strip // w // 2 * 2)
    assert max(calls[1:]) <= (h if grad else max(rows + 4, 3))
    assert (len(calls) > 2) == (not grad and h > rows + 2)


def _is_winograd(conv: Conv3x3) -> bool:
    """Whether a convolution takes the other way: its float32 results differ in the last digits."""
    x = torch.randn(1, conv.in_channels, 64, 64)
    with torch.no_grad():
        return not torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding=1))


def test_only_a_frozen_convolution_takes_the_other_way() -> None:
    torch.manual_seed(0)
    conv = Conv3x3(ops.WIDE, 8).eval()
    assert not _is_winograd(conv)
    assert _is_winograd(freeze(conv))
    assert _is_winograd(copy.deepcopy(conv))
    assert not _is_winograd(freeze(Conv3x3(ops.WIDE - 1, 8)))
    conv.load_state_dict(Conv3x3(ops.WIDE, 8).state_dict())
    assert not _is_winograd(conv)
    assert not _is_winograd(freeze(conv).train())
    assert _is_winograd(freeze(conv).eval())
    assert conv.double()(torch.randn(1, ops.WIDE, 64, 64, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("registers", [True, False])
def test_with_matrix_registers_half_precision_takes_the_straight_way(
    registers: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "MATRIX_REGISTERS", registers)
    prepared = freeze(Conv3x3(ops.WIDE, 8).eval(), dtype).transformed
    assert (prepared is None) == (registers and dtype == torch.bfloat16)


def test_gradients_come_from_the_plain_convolution() -> None:
    torch.manual_seed(0)
    conv = freeze(Conv3x3(ops.WIDE, 4))
    x = torch.randn(1, ops.WIDE, 64, 64, requires_grad=True)
    conv(x).square().sum().backward()
    assert x.grad is not None
    found = x.grad.clone()
    x.grad = None
    F.conv2d(x, conv.weight, conv.bias, padding=1).square().sum().backward()
    torch.testing.assert_close(found, x.grad)


def test_a_traced_graph_is_plain() -> None:
    conv = freeze(Conv3x3(ops.WIDE, 4)).eval()
    with torch.no_grad():
        graph = torch.jit.trace(conv, torch.randn(1, ops.WIDE, 64, 64))
    assert str(graph.inlined_graph).count("aten::_convolution") == 1


def test_network_of_plain_operations_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU runs, and what a traced graph holds."""
    torch.manual_seed(0)
    net = HeteCD(ModelConfig(encoder="pvt_v2_b0", width=64, attention="rescaled")).eval()
    freeze(net)
    images = torch.rand(2, 3, 128, 96), torch.rand(2, 3, 128, 96)
    with torch.no_grad():
        fast = net(*images)
        assert net.decoder.difference[0].fuse.conv.transformed is not None
        monkeypatch.setattr(ops, "plain", lambda x: True)
        monkeypatch.setattr(ops, "traced", lambda: True)
        torch.testing.assert_close(fast, net(*images), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bf16", [False, True])
def test_frozen_norms_are_part_of_their_convolutions(bf16: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig("residual_s", width=16, detail=True, standardise=True, correlation=True, dropout=0)
    net = HeteCD(config).train()
    images = torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("1.weight"):
                parameter.uniform_(0.5, 1.5)
        for _ in range(3):
            net(*images)  # statistics of its own
        net.eval()
        wanted = net(*images).softmax(1)
        frozen = freeze(copy.deepcopy(net), torch.bfloat16 if bf16 else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            found = frozen(*images).float().softmax(1)
        for part in (frozen.optical_encoder, frozen.decoder.difference[0].correlation):
            assert not any(isinstance(m, nn.BatchNorm2d) for m in part.modules())
        assert float(wanted.std()) > 1e-3
        torch.testing.assert_close(found, wanted, atol=2e-2 if bf16 else 1e-5, rtol=0)
        again = freeze(frozen)  # nothing is left to do
        assert len(list(again.parameters())) == len(list(frozen.parameters()))


def test_lowered_network_keeps_its_norms() -> None:
    net = lower(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 6), nn.LayerNorm(6)))
    assert [next(module.parameters()).dtype for module in net] == [
        torch.bfloat16, torch.float32, torch.bfloat16, torch.float32,
    ]  # fmt: skip


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(("environment", "kept"), [({}, True), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)])
def test_freed_memory_is_kept(environment: dict[str, str], kept: bool) -> None:
    """Page faults of making a tensor of 64 MB again and again: in the end none where memory is kept, else 16,384."""
    program = (
        "import resource, torch\n"
        "from hetecd.ops import keep_memory\n"
        "keep_memory()\n"
        "for _ in range(20):\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(2**24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
    )
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    run = subprocess.run(
        [sys.executable, "-c", program], env=own | environment, capture_output=True, text=True, check=True
    )
    assert (int(run.stdout) < 1000) == kept


def test_a_processor_without_bfloat16(tiles: Path, tmp_path: Path) -> None:
    """Such as most laptops have. oneDNN can be told to be one, before it is loaded."""
    script = """
        import sys
        import torch
        from hetecd import cli, ops

        if ops.BF16:
            sys.exit(77)  # no x86
        x, weight, bias = torch.rand(1, 8, 20, 20), torch.rand(8, 8, 3, 3) / 8, torch.rand(8)
        with torch.inference_mode():
            low = ops.conv_gelu(*(tensor.bfloat16() for tensor in (x, weight, bias)))
            torch.testing.assert_close(low.float(), ops.conv_gelu(x, weight, bias), rtol=0.02, atol=0.02)
        sys.exit(cli.main(sys.argv[1:]))
    """
    words = ["train", "recipes/quick.yaml", "--data", tiles, "-o", tmp_path / "run", "--epochs", "1", "--width", "8",
             "--sar-db", "true", "--accelerator", "cpu"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, words)],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 77:
        pytest.skip("this processor cannot pass for one without bfloat16")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("so float32 is faster") == 1
