"""`python -m hetecd`, where the command `hetecd` is not on the path."""

import sys

from hetecd.cli import main

sys.exit(main())
