"""Builds the wheel (PEP 517), with nothing but Python's own library.

The program is the one that MINI_LB_BINARY names, or the one that Cargo builds in the directory above. The platform of the wheel
is the one that the program needs: the version of the C library is read from the program, one without a C library runs on all
of them. MINI_LB_WHEEL_PLATFORM overrides it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Optional

HERE = Path(__file__).resolve().parent
CRATE = HERE.parent
METADATA = """\
Metadata-Version: 2.1
Name: mini-lb
Version: {version}
Summary: {description}
License: Apache-2.0
Keywords: sglang,vllm,llm,load balancer,disaggregation
Classifier: Environment :: Console
Classifier: License :: OSI Approved :: Apache Software License
Classifier: Operating System :: POSIX :: Linux
Classifier: Programming Language :: Python :: 3
Classifier: Programming Language :: Rust
Classifier: Typing :: Typed
Requires-Python: >=3.9
Description-Content-Type: text/markdown

{readme}"""


def _of_manifest(key: str) -> str:
    text = (CRATE / "Cargo.toml").read_text(encoding="utf-8")
    found = re.search(rf'^{key} = "(.*)"$', text, re.MULTILINE)
    if found is None:
        raise RuntimeError(f"Cargo.toml has no {key}")
    return found.group(1)


def _program() -> Path:
    given = os.environ.get("MINI_LB_BINARY")
    if given:
        return Path(given)
    build = ["cargo", "build", "--locked", "--release", "--bin", "mini-lb"]
    subprocess.run(build, cwd=CRATE, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", CRATE / "target"))
    return CRATE / target / "release" / "mini-lb"


def _platform(program: bytes) -> str:
    """Source: PEP 600 (manylinux_x_y is a version of glibc), PEP 656 (musllinux)."""
    given = os.environ.get("MINI_LB_WHEEL_PLATFORM")
    if given:
        return given
    machine = sysconfig.get_platform().rsplit("-", 1)[-1]
    if not sys.platform.startswith("linux"):
        return sysconfig.get_platform().replace("-", "_").replace(".", "_")
    versions = {tuple(map(int, found)) for found in re.findall(rb"GLIBC_(\d+)\.(\d+)", program)}
    if not versions:
        return f"manylinux_2_17_{machine}.musllinux_1_1_{machine}"
    major, minor = max(versions)
    return f"manylinux_{major}_{max(minor, 17)}_{machine}"


class _Wheel:
    """An archive and the list of its files."""

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
        self._record: List[str] = []

    def add(self, name: str, content: bytes, mode: int = 0o644) -> None:
        entry = zipfile.ZipInfo(name)  # with the oldest time, so that the same files are the same wheel
        entry.external_attr = (0o100000 | mode) << 16
        entry.compress_type = zipfile.ZIP_DEFLATED
        self._zip.writestr(entry, content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        self._record.append(f"{name},sha256={digest},{len(content)}")

    def close(self, record: str) -> None:
        lines = [*self._record, f"{record},,"]
        self._zip.writestr(zipfile.ZipInfo(record), "\n".join(lines) + "\n")
        self._zip.close()


def build_wheel(
    wheel_directory: str,
    config_settings: Optional[Dict[str, Any]] = None,
    metadata_directory: Optional[str] = None,
) -> str:
    """The hook of PEP 517: writes the wheel, and returns the name of its file."""
    version = _of_manifest("version")
    program = _program().read_bytes()
    platform = _platform(program)
    name = f"mini_lb-{version}-py3-none-{platform}.whl"
    info, data = f"mini_lb-{version}.dist-info", f"mini_lb-{version}.data"
    wheel = _Wheel(Path(wheel_directory) / name)
    for file in sorted((HERE / "mini_lb").glob("*")):
        if file.is_file():
            wheel.add(f"mini_lb/{file.name}", file.read_bytes())
    wheel.add(f"{data}/scripts/mini-lb", program, 0o755)
    readme = (HERE / "README.md").read_text(encoding="utf-8")
    described = METADATA.format(version=version, description=_of_manifest("description"), readme=readme)
    wheel.add(f"{info}/METADATA", described.encode())
    wheel.add(f"{info}/licenses/LICENSE", (CRATE / "LICENSE").read_bytes())
    tags = "".join(f"Tag: py3-none-{tag}\n" for tag in platform.split("."))
    head = "Wheel-Version: 1.0\nGenerator: mini-lb\nRoot-Is-Purelib: false\n"
    wheel.add(f"{info}/WHEEL", (head + tags).encode())
    wheel.close(f"{info}/RECORD")
    return name


def build_sdist(sdist_directory: str, config_settings: Optional[Dict[str, Any]] = None) -> str:
    """The hook of PEP 517. The sources are those of the crate."""
    raise RuntimeError("there is no source distribution: install a wheel, or from the repository")


def get_requires_for_build_wheel(config_settings: Optional[Dict[str, Any]] = None) -> List[str]:
    """The hook of PEP 517: nothing."""
    return []
