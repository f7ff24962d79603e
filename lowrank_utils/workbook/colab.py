"""What the first code cell of a notebook calls on Colab. Imports nothing of ours, and nothing that may be missing there."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata

OWN = ("jupyterlab", "ipykernel")  # Colab brings its own page and kernel, at versions that it needs
EXTRAS = ("language",)  # what notebook 07 wants too


def missing(requirements: Iterable[str] | None = None) -> list[str]:
    """Return the requirements (default: those of this package) that are not installed in any version, those of `OWN` left out.

    What is there stays as it is, because Colab relies on the versions that it brings.

    >>> missing(["numpy>=1.0", "no-such-package>=2 ; extra == 'language'", "nor-this ; extra == 'site'", "ipykernel>=99"])
    ['no-such-package>=2']
    """
    absent = []
    for line in metadata.requires("lowrank-workbook") or [] if requirements is None else requirements:
        wanted, _, condition = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", condition)
        name = re.split(r"[^\w.-]", wanted.strip())[0]
        if (extra and extra[1] not in EXTRAS) or name in OWN:
            continue
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(wanted.strip())
    return absent


def complete() -> list[str]:
    """Install what is `missing` with pip, and return it. Raises subprocess.CalledProcessError where pip cannot."""
    absent = missing()
    if absent:
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", *absent], check=True)
    return absent
