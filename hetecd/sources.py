"""What an image is read from, and how it is known again: its file, those that it names, what a server says of a URL."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import hetecd
from hetecd.files import sha256
from hetecd.image import images_of, own_files
from hetecd.modality import FOREIGN
from hetecd.raster import files_of, is_remote, open_raster

HTTP = re.compile(r"(?:/vsicurl/)?(https?://.+)")
COMPANIONS = (".aux.xml", ".ovr")  # statistics and small copies that viewers leave beside an image
BESIDE = {".xml": (".bin",), ".shp": (".shx", ".dbf", ".prj", ".cpg")}  # what else such a file is read from
PATIENCE_S = 15


def identify(path: Path | str) -> dict[str, Any]:
    """Path, bytes and sha256 of an image, as ``summary.json`` has them; the last two are null for what is no file.

    Of a folder of granules they are the sum of the sizes and the checksum of the listing that sha256sum prints. Where
    an image is read from other files, too (a virtual raster, a container, a mask beside it), ``sources`` says how many,
    and size and checksum of them in the same way; ``read_as`` is a digest of what the files declare about place and
    nodata, wherever they do. Of a URL ``version`` is the ETag or else the time of change that the server tells. A
    checksum or version that nothing tells is None.

    Raises:
        InputError: there is no such image.
    """
    if match := HTTP.fullmatch(str(path)):
        size, version = _served(match[1])
        return {"path": str(path), "bytes": size, "sha256": None, "version": version}
    own = own_files(path)
    known = {"path": os.path.abspath(path), **_together(own)} if os.path.isdir(path) else identify_file(path)
    files, read_as = _read_from(path)
    told = {os.path.abspath(file) for file in own}
    others = [file for file in files if os.path.abspath(file) not in told]
    return {**known, **_sources(others), "read_as": read_as}


def identify_file(path: Path | str) -> dict[str, Any]:
    """Path, bytes and sha256 of a single file; null where it is none of this machine."""
    if not os.path.isfile(path):
        return {"path": str(path), "bytes": None, "sha256": None}
    path = os.path.abspath(path)  # the results are also read from other folders than this one
    return {"path": path, "bytes": os.path.getsize(path), "sha256": sha256(path)}


def identify_with(path: Path | str) -> dict[str, Any]:
    """The same of a checkpoint, an exported graph or polygons, ``sources`` being what else they are read from."""
    others = files_beside(path)[1:]
    return {**identify_file(path), **_sources(others)}


def files_beside(path: Path | str) -> list[Path | str]:
    """A file that is no image, and those beside it that belong to it: weights of OpenVINO, parts of a shapefile."""
    beside = (Path(path).with_suffix(suffix) for suffix in BESIDE.get(Path(path).suffix.lower(), ()))
    return [path, *(file for file in beside if file.is_file())]


def is_known(entry: Mapping[str, Any]) -> bool:
    """Whether something tells when the content of an identified image is another one."""
    parts = [entry.get("sources"), entry]
    return next(bool(part["sha256"] or part.get("version")) for part in parts if part)


def request_of(settings: Mapping[str, Any], images: Iterable[Path | str], files: Iterable[Path | str]) -> str:
    """A digest of what is asked for, found without reading a pixel: other settings or any touched file change it.

    Args:
        settings: of the run.
        images: whatever :func:`identify` takes.
        files: that are no images; those that do not exist count as such.

    Raises:
        InputError: there is no such image.
    """
    looked = [_read_from(image) for image in images]
    stamps = [[_stamp(file) for file in together] for together in (*(found for found, _ in looked), files)]
    # FOREIGN too, as it decides on the scaling: where it changed, a map may be another one.
    asked = [hetecd.__version__, FOREIGN, dict(settings), stamps, [read_as for _, read_as in looked]]
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _read_from(path: Path | str) -> tuple[list[str], str | None]:
    """Files and URLs that an image is read from, a file itself first, and a digest of what tells place and nodata.

    That may stand in a companion; the digest is None for what lies elsewhere, where GDAL looks for no companions.
    """
    if is_remote(str(path)):
        return [str(path)], None
    files, told = [], []
    for own in images_of(path):
        with open_raster(own) as dataset:
            files += [file for file in files_of(dataset) if not file.lower().endswith(COMPANIONS)]
            ties, crs = dataset.gcps
            tied = [(tie.row, tie.col, tie.x, tie.y) for tie in ties]
            place = str(dataset.crs), list(dataset.transform), tied, str(crs), str(dataset.rpcs)
            told.append([*place, str(dataset.nodatavals), str(dataset.mask_flag_enums), str(dataset.colorinterp)])
    return files, hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _stamp(file: Path | str) -> list[Any]:
    if match := HTTP.fullmatch(str(file)):
        return [match[1], *_served(match[1])]
    try:
        status = os.stat(file)
    except OSError:
        return [str(file)]
    # The time of the last change of the inode cannot be set by a copy that keeps times.
    return [os.path.abspath(file), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _sources(files: Sequence[Path | str]) -> dict[str, Any]:
    return {"sources": {"files": len(files), **_together(files)}} if files else {}


def _together(files: Iterable[Path | str]) -> dict[str, Any]:
    """Bytes and checksum of several files; None where nothing tells those of one."""
    size, lines = 0, []
    for file in files:
        match = HTTP.fullmatch(str(file))
        if match or is_remote(str(file)):
            known = _served(match[1]) if match else (None, None)
        else:
            known = os.path.getsize(file), sha256(file)
        if None in known:
            return {"bytes": None, "sha256": None}
        size += known[0] or 0
        lines.append(f"{known[1]}  {Path(file).name}\n")
    return {"bytes": size, "sha256": hashlib.sha256("".join(lines).encode()).hexdigest()}


def _served(url: str) -> tuple[int | None, str | None]:
    """Bytes and version of a URL; None where the server does not tell."""
    try:
        with urlopen(Request(url, method="HEAD"), timeout=PATIENCE_S) as answer:
            headers = answer.headers
    except (OSError, ValueError):  # whoever reads the pixels will say what is wrong
        return None, None
    size = headers.get("Content-Length", "")
    return int(size) if size.isdecimal() else None, headers.get("ETag") or headers.get("Last-Modified")
