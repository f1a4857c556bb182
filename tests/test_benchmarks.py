"""The yardstick of the speed tables is the published network too."""

from pathlib import Path

import numpy as np
import parity
import pytest
import torch
from plain import PlainHeteCD

from hetecd.convert import UNUSED


@pytest.mark.parametrize("name", ["C_e64_1x64", "D_e64_1x96x160"])
def test_the_plain_transcription_has_parity(name: str, shared: Path) -> None:
    net = PlainHeteCD(64).eval()
    state = parity.state_dict(shared / "parity", "keys_e64.json")
    net.load_state_dict({key: value for key, value in state.items() if key not in UNUSED})
    optical, sar, _ = parity.inputs(shared / "parity", name)
    arrays, _ = parity.case(shared / "parity", name)
    with torch.no_grad():
        logits, features = net(optical, sar)
    assert np.abs(logits.numpy() - arrays["logits"]).max() < 1e-4
    assert np.abs(features[1][0][:, :8].numpy() - arrays["feat2_c3_first8"]).max() < 1e-4
