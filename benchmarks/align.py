"""How well a known misplacement is found and undone, beside mutual information (SimpleITK, where installed).

The SAR image of each scene is misplaced by known shifts (up to 40 px along both axes), rotations (up to 1.5 degrees)
and scales (up to 1 %), through the same warp by which it is read. Scenes: the real pair of Los Angeles (--data), and
synthetic ones in which 25 % of the area shows another place in SAR.

The two images of a scene need not fit when nothing is misplaced: satellites point within some metres, what is high
stands elsewhere in SAR. For real scenes nobody knows by how much. So the residual is the distance to where the same
method puts the SAR image when nothing is misplaced, on average over the scene; for synthetic scenes, whose true place
is known, the distance to that is given as well.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from rasterio.transform import Affine
from scipy import ndimage

import hetecd.align
from hetecd.modality import Modality, uint8_modality
from hetecd.pair import Pair, open_pair
from hetecd.raster import write_raster
from hetecd.synth import make_scene
from hetecd.synth_world import SceneKind
from hetecd.tiles import Window

SHIFT_PX, TURN_DEG, SCALE = 40.0, 1.5, 0.01
CHANGED = 0.25
SIZE_PX = 768
WORSE_PX = 0.3
KINDS = ("shift", "shift, rotation", "shift, scale", "all three")
STILL = Affine.identity()
Opener = Callable[[Affine | None], AbstractContextManager[Pair]]


class Scene(NamedTuple):
    """A pair of files, and how to read it."""

    name: str
    optical: Path
    sar: Path
    modalities: tuple[Modality, Modality]
    shape: tuple[int, int]

    def opener(self, misplaced: Affine) -> Opener:
        """Opens the pair with the SAR image misplaced, and moved."""
        return lambda move: open_pair(
            self.optical, self.sar, "optical", *self.modalities, sar_move=misplaced @ (move or STILL)
        )


class Case(NamedTuple):
    """One misplacement of one scene, and what became of it; all in pixels, root mean square over the scene."""

    scene: str
    kind: str
    before: float
    after: float
    true_before: float
    true_after: float
    moved: bool
    seconds: float


def misplacement(rng: np.random.Generator, kind: str, shape: tuple[int, int]) -> Affine:
    """A motion about the middle of a scene."""
    middle = Affine.translation(shape[1] / 2, shape[0] / 2)
    turn_deg = rng.uniform(-TURN_DEG, TURN_DEG) if kind in ("shift, rotation", "all three") else 0.0
    scale = 1 + rng.uniform(-SCALE, SCALE) if kind in ("shift, scale", "all three") else 1.0
    shift = Affine.translation(*rng.uniform(-SHIFT_PX, SHIFT_PX, 2))
    return shift @ middle @ Affine.rotation(turn_deg) @ Affine.scale(scale) @ ~middle


def synthetic(folder: Path, seed: int) -> Scene:
    """A scene on disk; what does not change by itself is replaced by another place until 25 % have changed."""
    kind: SceneKind = "flood" if seed % 2 else "city"
    scene, other = (make_scene(number, SIZE_PX, SIZE_PX, kind, jitter_px=0) for number in (seed, seed + 10_000))
    patch = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal((SIZE_PX, SIZE_PX)), 24)
    plain = scene.label == 0
    missing = max(CHANGED - scene.label.mean(), 0) / plain.mean()
    replaced = plain & (patch > np.quantile(patch[plain], 1 - missing))
    optical, sar = folder / f"{seed}_optical.tif", folder / f"{seed}_sar.tif"
    write_raster(optical, scene.optical, scene.grid, 0)
    write_raster(sar, np.where(replaced, other.sar, scene.sar), scene.grid, np.nan)
    modalities = Modality((1, 2, 3, 4), (0.0,) * 4, (3000.0,) * 4), Modality((1,), (-25.0,), (0.0,), db=True)
    return Scene(f"synthetic {kind}", optical, sar, modalities, (SIZE_PX, SIZE_PX))


def real(folder: Path) -> Scene:
    """The pair of Los Angeles."""
    modalities = uint8_modality((1, 2, 3)), uint8_modality((1,))
    optical, sar = folder / "optical.tif", folder / "sar.tif"
    with open_pair(optical, sar, "optical", *modalities) as pair:
        return Scene("Los Angeles", optical, sar, modalities, pair.grid.shape)


def orientation(open_moved: Opener) -> Affine:
    """Ours."""
    return hetecd.align.find_move(open_moved).sar_move


def mutual_information(open_moved: Opener) -> Affine:
    """Mattes' mutual information, similarity, over the whole scene and three resolutions, by SimpleITK."""
    sitk: Any = importlib.import_module("SimpleITK")
    with open_moved(None) as pair:
        optical, sar, valid = pair.read(Window(0, 0, *pair.grid.shape))
    images = [np.log(np.where(valid, image.mean(0), 1e-3) + 1e-3) for image in (optical, sar)]
    fixed, moving = (sitk.GetImageFromArray(image.astype(np.float32)) for image in images)
    usable = sitk.GetImageFromArray(valid.astype(np.uint8))
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(50)
    method.SetMetricFixedMask(usable)
    method.SetMetricMovingMask(usable)
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentage(0.2, 1)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([8, 4, 2])
    method.SetSmoothingSigmasPerLevel([4, 2, 1])
    start = sitk.Similarity2DTransform()
    start.SetCenter((fixed.GetWidth() / 2, fixed.GetHeight() / 2))
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    (a, b, d, e), shift, center = start.GetMatrix(), start.GetTranslation(), start.GetCenter()
    around = Affine.translation(*center)
    return Affine.translation(*shift) @ around @ Affine(a, b, 0, d, e, 0) @ ~around


def run(scene: Scene, method: Callable[[Opener], Affine], seed: int, count: int) -> list[Case]:
    """Misplace a scene in several ways and have each undone."""
    rng = np.random.default_rng(seed)
    cols, rows = np.meshgrid(*(np.linspace(0.1, 0.9, 5) * size for size in scene.shape[::-1]))
    here = np.array((cols, rows))

    def off_px(one: NDArray[Any], other: NDArray[Any]) -> float:
        return float(np.sqrt(((one - other) ** 2).sum(0).mean()))

    def found(kind: str, misplaced: Affine) -> Affine:
        try:
            return method(scene.opener(misplaced))
        except RuntimeError as error:  # SimpleITK, where images cease to overlap
            print(f"{scene.name}, {kind}: {' '.join(str(error).split())[-80:]}", file=sys.stderr)
            return STILL

    hetecd.align.LEAST_PX, least_px = 0.0, hetecd.align.LEAST_PX  # the measure itself, however small
    natural = np.array(found("as it comes", STILL) @ (cols, rows))
    hetecd.align.LEAST_PX = least_px
    cases = []
    for kind in ("none", *(KINDS[number % len(KINDS)] for number in range(count - 1))):
        misplaced = STILL if kind == "none" else misplacement(rng, kind, scene.shape)
        started = time.perf_counter()
        move = found(kind, misplaced)
        seconds = time.perf_counter() - started
        before, after = (np.array(motion @ (cols, rows)) for motion in (misplaced, misplaced @ move))
        relative, absolute = ((off_px(before, truth), off_px(after, truth)) for truth in (natural, here))
        cases.append(Case(scene.name, kind, *relative, *absolute, move != STILL, seconds))
    return cases


def checkerboard(scene: Scene, path: Path) -> None:
    """Picture of a misplaced scene as it comes and as it is moved: squares of optical and SAR in turn."""
    misplaced = misplacement(np.random.default_rng(3), "all three", scene.shape)
    found = hetecd.align.find_move(scene.opener(misplaced))
    panels = []
    for move in (STILL, found.sar_move):
        with scene.opener(misplaced)(move) as pair:
            optical, sar, _ = pair.read(Window(200, 200, 360, 360))
        shown = [np.log(optical.mean(0)), np.log(sar[0] + 1e-3)]
        low, high = zip(*(np.nanpercentile(image, (2, 98)) for image in shown), strict=True)
        grey = [np.clip((image - a) / (b - a), 0, 1) for image, a, b in zip(shown, low, high, strict=True)]
        squares = np.indices(grey[0].shape) // 45
        panels.append(np.where(squares.sum(0) % 2, *grey))
    print(found)
    figure, axes = plt.subplots(1, 2, figsize=(12, 6.2), layout="constrained")
    for axis, panel, title in zip(axes, panels, ("as it comes", "moved"), strict=True):
        axis.imshow(panel, cmap="gray", interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    figure.savefig(path, dpi=75)


def row(name: str, cases: list[Case], known: bool) -> str:
    """One row of the table."""
    before, after = np.array([case.before for case in cases]), np.array([case.after for case in cases])
    true = np.array([(case.true_before, case.true_after) for case in cases])
    worse, truly_worse = (after > before + WORSE_PX).sum(), (true[:, 1] > true[:, 0] + WORSE_PX).sum()
    cells = [
        name, f"{len(cases)}", f"{np.median(before):.1f}", f"{np.median(after):.2f}",
        f"{np.quantile(after, 0.9):.2f}", f"{worse}", f"{np.median(true[:, 1]):.2f}" if known else "–",
        f"{truly_worse}" if known else "–", f"{np.mean([case.moved for case in cases]):.0%}",
        f"{np.median([case.seconds for case in cases]):.1f}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with optical.tif and sar.tif of Los Angeles")
    parser.add_argument("--scenes", type=int, default=12, help="synthetic scenes")
    parser.add_argument("--cases", type=int, default=5, help="misplacements of each scene, the first of which is none")
    parser.add_argument("--real-cases", type=int, default=13, help="misplacements of the real scene")
    parser.add_argument("--first", type=int, default=700, help="seed; parameters were chosen on 100 to 111")
    parser.add_argument("--without", choices=("orientation", "mutual"), help="leave a method out")
    parser.add_argument("--picture", type=Path, help="draw docs/registration.png instead")
    args = parser.parse_args()
    if args.picture:
        with tempfile.TemporaryDirectory() as folder:
            checkerboard(synthetic(Path(folder), args.first + 1), args.picture)
        return
    methods = {"orientation": orientation, "mutual": mutual_information}
    methods.pop(args.without, None)
    if importlib.util.find_spec("SimpleITK") is None:
        methods.pop("mutual", None)
        print("mutual information is left out: SimpleITK is not installed (make bench-align installs it)")
    print("| scenes, method | cases | before, px | after | 90 % | worse | after, to truth | worse | moved | s |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        scenes = [synthetic(Path(folder), args.first + number) for number in range(args.scenes)]
        scenes += [real(args.data)] if args.data else []
        for name, method in methods.items():
            found = []
            for number, scene in enumerate(scenes):
                count = args.cases if number < args.scenes else args.real_cases
                found.append(run(scene, method, args.first + number, count))
            for group in dict.fromkeys(scene.name for scene in scenes):
                cases = [case for of_scene in found for case in of_scene if case.scene == group]
                print(row(f"{group}, {name}", cases, known=group.startswith("synthetic")), flush=True)


if __name__ == "__main__":
    main()
