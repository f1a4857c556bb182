"""The form for export is the same function as the network, whatever its settings, size and batch."""

import pytest
import torch

from hetecd.config import ModelConfig
from hetecd.graph import Graph
from hetecd.model import HeteCD

CASES = {
    "published": {"encoder": "mit_b0", "width": 16},
    "rescaled": {"encoder": "pvt_v2_b0", "width": 12, "attention": "rescaled"},  # 24 slices: the last group is not full
    "one date": {"encoder": "mit_b0", "width": 8, "attention": "rescaled", "modalities": "optical"},
    "residual": {"encoder": "residual_s", "width": 8, "attention": "rescaled", "standardise": True, "detail": True},
    "correlation": {"encoder": "residual_s", "width": 8, "attention": "rescaled", "correlation": True},
}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_graph_is_the_network(case: str, int8: bool) -> None:
    torch.manual_seed(0)
    net = HeteCD(ModelConfig(**CASES[case], optical_channels=4, sar_channels=1)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        for _, buffer in net.named_buffers():  # as if trained: fresh statistics do nothing
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
        for name, parameter in net.named_parameters():
            if name.endswith(("head.3.weight", "head.weight")):
                parameter.mul_(20)
            elif parameter.ndim == 1 and name.endswith("weight"):  # of norms; some begin at 0
                parameter.uniform_(0.5, 1.5)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        graph = Graph(net, int8)
        spread = 0.0
        for batch, height, width in ((1, 32, 32), (2, 50, 90)):
            images = torch.rand(batch, 4, height, width), torch.rand(batch, 1, height, width)
            wanted = net(*images).softmax(1)[:, 1]
            torch.testing.assert_close(graph(*images), wanted, atol=2e-6, rtol=0)
            spread = max(spread, float(wanted.max() - wanted.min()))
    assert spread > 1e-3  # a constant would be equal to anything
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
