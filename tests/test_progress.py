"""A bar on a terminal, a line now and then elsewhere."""

import logging
import sys

import pytest

from hetecd import progress
from hetecd.progress import Progress


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with Progress(8_000_000) as bar:
        bar.skip(3_000_000)
        for _ in range(5):
            bar.add(1_000_000)
    shown = capsys.readouterr().err
    assert "100 %" in shown
    assert "5.0 of 5.0 Mpx" in shown
    assert "Mpx/s" in shown


@pytest.mark.parametrize("show", [True, False])
def test_a_log_file_gets_a_line_now_and_then(capsys, caplog, monkeypatch, show):
    caplog.set_level(logging.INFO, "hetecd")
    with Progress(8_000_000, show) as bar:
        bar.add(1_000_000)
        assert not caplog.messages
        monkeypatch.setattr(progress, "EVERY_S", 0)
        bar.add(1_000_000)
    assert capsys.readouterr().err == ""
    assert len(caplog.messages) == show
    assert not show or caplog.messages[0].startswith("2 of 8 Mpx, ")
