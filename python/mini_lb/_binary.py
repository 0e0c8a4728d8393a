"""Where the program of this package is."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

__all__ = ["binary"]

_NAME = "mini-lb"


def _candidates() -> list[Path]:
    schemes = [sysconfig.get_default_scheme()] if hasattr(sysconfig, "get_default_scheme") else []
    schemes.append(f"{os.name}_user")
    found = [Path(sysconfig.get_path("scripts"))]
    for scheme in schemes:
        if scheme in sysconfig.get_scheme_names():
            found.append(Path(sysconfig.get_path("scripts", scheme)))
    # `pip install --target DIR` has no scheme of its own.
    found.append(Path(__file__).resolve().parent.parent / "bin")
    found.append(Path(sys.executable).parent)
    return [folder / _NAME for folder in found]


def binary() -> str:
    """The path of the program: that of ``MINI_LB_BINARY``, that of this package, or the first of ``PATH``.

    Raises:
        FileNotFoundError: there is none of them.
    """
    given = os.environ.get("MINI_LB_BINARY")
    if given:
        return given
    for candidate in _candidates():
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which(_NAME)
    if found is None:
        raise FileNotFoundError(f"the program {_NAME} is not installed")
    return found
