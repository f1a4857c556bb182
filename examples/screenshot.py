"""Take the picture of a report that is in the README: `make report-picture`, after `make demo`. Needs chromium."""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from hetecd.files import replacing

SIZE = (1200, 760)


def main() -> None:
    """Open a page in a browser without a window and keep what it shows, in 256 colours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    args = parser.parse_args()
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser or not args.page.is_file():
        sys.exit(
            "screenshot: needs chromium" if not browser else f"screenshot: {args.page} is missing; run `make demo`"
        )
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        size, out = f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={shot}"
        command = [browser, *flags, size, out, "--virtual-time-budget=2000", args.page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with replacing(args.picture) as part:
            Image.open(shot).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(part, "PNG", optimize=True)


if __name__ == "__main__":
    main()
