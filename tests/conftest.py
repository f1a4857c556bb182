"""What several test files share."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture
def shared() -> Path:
    """Real data and parity numbers beside the repository; the test is skipped where they are absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the folder ../shared (real data and parity numbers), which is absent")
    return SHARED
