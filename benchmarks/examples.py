"""What networks make of tiles, for the eye: `benchmarks/examples.py DATA -o FILE.png --weights ours=PATH other=PATH`.

A row per tile: optical, SAR, label, and the errors of each network in colour. The tiles are the best, the median and
the worst by IoU of the first network, so that nobody picks them.
"""

import argparse
from pathlib import Path

from vision import prepare

prepare()  # before anything below imports lightning

from rows import from_checkpoint  # noqa: E402

from hetecd.config import TrainConfig  # noqa: E402
from hetecd.data import Tile, TileDataset, find_tiles  # noqa: E402
from hetecd.evaluate import predict_tiles, telling  # noqa: E402
from hetecd.figures import VERDICT, image_sheet, iou, seen, verdict  # noqa: E402
from hetecd.metrics import confusion  # noqa: E402
from hetecd.modality import Floats, mirrored  # noqa: E402


def predictions(weights: Path, data: Path, split: str, tta: bool) -> tuple[list[tuple[Tile, Floats]], float]:
    """Every tile of a split with its probability, and the threshold."""
    net = from_checkpoint(weights)
    config = TrainConfig(before_is=net.before_is, ignore_255=net.ignore_255)
    tiles = TileDataset(find_tiles(data, split), config, net.optical, net.sar)
    predictor = mirrored(net.predictor) if tta else net.predictor
    return list(predict_tiles(predictor, tiles, 8)), net.threshold


def main(argv: list[str] | None = None) -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--weights", nargs="+", required=True, metavar="NAME=PATH")
    parser.add_argument("--split", default="test")
    parser.add_argument("--each", type=int, default=2, help="tiles of the best, of the median and of the worst")
    parser.add_argument("--tta", action="store_true")
    args = parser.parse_args(argv)
    named = [word.partition("=")[::2] for word in args.weights]
    found = [predictions(Path(path), args.data, args.split, args.tta) for _, path in named]
    first, threshold = found[0]
    chosen = telling([confusion(prob >= threshold, tile.label).scores()["iou"] for tile, prob in first], args.each)
    if not chosen:  # where there is no change there is no IoU
        parser.error(
            f"{args.data}: found no change in split '{args.split}', neither labelled nor mapped; choose another"
        )
    rows = []
    for index in chosen:
        tile = first[index][0]
        maps = [verdict(probs[index][1], tile.label, limit) for probs, limit in found]
        title = " / ".join(iou(probs[index][1], tile.label, limit) for probs, limit in found)
        rows.append((f"{tile.name}\nIoU {title}", (*seen(tile), *maps)))
    columns = [
        "optical",
        "SAR",
        "label",
        *(f"{name}: {VERDICT}" if i == 0 else name for i, (name, _) in enumerate(named)),
    ]
    image_sheet(rows, columns, args.out)
    print(f"written: {args.out}")


if __name__ == "__main__":
    main()
