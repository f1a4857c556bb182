"""The accuracy tables: `make bench-accuracy DATA=folder PROTOCOL=blocks ROWS="quick boosting"`.

`accuracy.py public|blocks|pairs|synthetic` trains the rows of rows.yaml and scores them (see protocols.py),
`accuracy.py checkpoint WEIGHTS` scores a finished network, `accuracy.py tables` writes the tables anew. What is
finished is never trained again and what was interrupted goes on: call the same command. Several may run at a time if
they train different rows.
"""

import argparse
import logging
import sys
from pathlib import Path

from vision import prepare

prepare()  # before anything below imports lightning

from protocols import PROTOCOLS, Sizes  # noqa: E402
from rows import ROWS, read_rows  # noqa: E402
from runs import run, score_checkpoint  # noqa: E402
from tables import write_tables  # noqa: E402

from hetecd.errors import HetecdError  # noqa: E402


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in (*PROTOCOLS, "checkpoint", "tables"):
        command = commands.add_parser(name)
        command.add_argument("--out", type=Path, default=Path("runs/accuracy"), help="results, trainings, tables")
        if name == "tables":
            continue
        command.add_argument("--data", type=Path, help="folder of tiles; pairs: folder of scenes; synthetic: none")
        if name == "checkpoint":
            command.add_argument("weights", type=Path)
            command.add_argument("--split", default="test")
            command.add_argument("--name", default="", help="of the row; default: the file's, and +tta with --tta")
            command.add_argument("--shifts", action="store_true", help="also the shift curve")
            command.add_argument("--tta", action="store_true", help="score the mean with a mirror image")
            continue
        command.add_argument("--rows", nargs="*", help="default: all that can be trained in this environment")
        command.add_argument("--rows-file", type=Path, default=ROWS)
        command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        command.add_argument("--epochs", type=int, help="instead of those of the recipes")
        for field in ("folds", "train_scenes", "test_scenes", "scene_px", "tile_px"):
            default = getattr(Sizes(), field)
            command.add_argument(f"--{field.replace('_', '-')}", type=int, default=default, help=f"default {default}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0, or 1 after a failure whose reason was printed."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("hetecd").setLevel(logging.INFO)
    parser = arguments()
    args = parser.parse_args(argv)
    try:
        problems: list[str] = []
        if args.command == "checkpoint":
            if args.data is None:
                parser.error("checkpoint: found no --data, expected a folder of tiles")
            score_checkpoint(args.weights, args.data, args.split, args.out, args.name, args.shifts, args.tta)
        elif args.command != "tables":
            rows = read_rows(args.rows, args.rows_file)
            if not args.rows:
                for row in rows:
                    if row.missing:
                        print(f"left out: {row.name}, which needs {row.missing}", file=sys.stderr)
                rows = [row for row in rows if not row.missing]
            sizes = Sizes(args.folds, args.train_scenes, args.test_scenes, args.scene_px, args.tile_px)
            problems = run(args.command, rows, args.seeds, args.out, args.data, sizes, args.epochs)
        print(write_tables(args.out))
    except HetecdError as error:
        problems = [str(error)]
    for problem in problems:
        print(f"accuracy: error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
