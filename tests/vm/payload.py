"""The two read-only disks that bring this checkout into a VM without a network: Python packages, and the checkout's own wheel.

Rules of this file:
- The guest runs Debian 12's Python 3.11 on the packages that the tests of this checkout run on: a copy of ``.venv``'s.
- The code is the built wheel, unpacked: what a file that is missing from it breaks, it breaks in VMs.
- Packages change with ``requirements.lock``, the wheel with any file of it; both are kept by that: no VM runs yesterday's code.
- In the guest, ``garrison`` and ``import garrison`` work for the system's python3 (``vagrant/image/guest``).
"""

from __future__ import annotations

import compileall
import hashlib
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from pathlib import Path

from vm.qemu import CODE_DISK_MIB, SITE_DISK_MIB
from wheel import WheelError, build_wheel, content_key

__all__ = ["CHECKOUT", "PayloadError", "code_disk", "site_disk", "stage_code", "stage_site"]

CHECKOUT = Path(__file__).resolve().parents[2]
GUEST_PYTHON = (3, 11)
# Only of use where code is written, and large. Names of files and folders in site-packages.
LEFT_OUT = (
    "mypy",
    "mypyc",
    "mypy-*",
    "*__mypyc*.so",
    "ruff",
    "ruff-*",
    "pip",
    "pip-*",
    "librt",
    "librt-*",
    "ast_serialize*",
    "__editable__*",
)
EXTRAS = ("states", "inventory")
_CODE_UNUSED_S = 86400  # disks of other contents are kept so long after their last use: somebody's VM may boot from one again


class PayloadError(Exception):
    """The disks cannot be made; the text has the remedy."""


def site_disk(cache: Path) -> Path:
    """Return the disk with ``.venv``'s packages, made once per set of packages.

    Raises:
        PayloadError: See ``stage_site``.
    """
    names = sorted(path.name for path in _site().glob("*.dist-info"))
    key = hashlib.sha256("\n".join([*names, *LEFT_OUT, str(SITE_DISK_MIB)]).encode()).hexdigest()[:16]
    disk = cache / f"site-{key}.raw"
    if not disk.exists():
        with tempfile.TemporaryDirectory(dir=cache) as stage:
            stage_site(Path(stage, "site"))
            _make_disk(Path(stage, "site"), Path(stage, "disk"), SITE_DISK_MIB)
            Path(stage, "disk").rename(disk)
    return disk


def code_disk(cache: Path) -> Path:
    """Return the disk with this checkout's code, made once per content.

    Raises:
        PayloadError: The wheel does not build.
    """
    extras = hashlib.sha256(b"".join(path.read_bytes() for path in _extras())).hexdigest()[:16]
    disk = cache / f"code-{content_key()}-{extras}.raw"
    if not disk.exists():
        with tempfile.TemporaryDirectory(dir=cache) as stage:
            stage_code(Path(stage, "code"))
            _make_disk(Path(stage, "code"), Path(stage, "disk"), CODE_DISK_MIB)
            Path(stage, "disk").rename(disk)
    disk.touch()
    for old in cache.glob("code-*.raw"):
        if time.time() - old.stat().st_mtime > _CODE_UNUSED_S:
            old.unlink(missing_ok=True)
    return disk


def _extras() -> list[Path]:
    return sorted(path for extra in EXTRAS for path in (CHECKOUT / extra).rglob("*") if path.is_file())


def stage_site(target: Path) -> None:
    """Copy ``.venv``'s packages to the new folder ``target``.

    Timestamps are kept: the .pyc files beside the sources stay valid, which saves an emulated CPU seconds per start.

    Raises:
        PayloadError: This Python is not the guest's version, so compiled packages would not load there.
    """
    if sys.version_info[:2] != GUEST_PYTHON:
        wanted = ".".join(map(str, GUEST_PYTHON))
        raise PayloadError(
            f".venv has Python {sys.version.split()[0]}, the VM {wanted}: set PYTHON=python{wanted} and run ./dev setup"
        )
    shutil.copytree(_site(), target, ignore=shutil.ignore_patterns(*LEFT_OUT))


def stage_code(target: Path) -> None:
    """Unpack the wheel, compiled, and the sample data to the new folder ``target``.

    Raises:
        PayloadError: The wheel does not build.
    """
    with tempfile.TemporaryDirectory() as work:
        try:
            wheel = build_wheel(Path(work))
        except WheelError as err:
            raise PayloadError(str(err)) from err
        with zipfile.ZipFile(wheel) as packed:
            for member in packed.infolist():
                Path(packed.extract(member, target)).chmod(member.external_attr >> 16 & 0o777)  # as pip does
    compileall.compile_dir(target, quiet=1, stripdir=str(target), prependdir="/opt/garrison")
    for extra in EXTRAS:
        if (CHECKOUT / extra).is_dir():
            shutil.copytree(CHECKOUT / extra, target / extra)


def _site() -> Path:
    return Path(sysconfig.get_path("purelib"))


def _make_disk(folder: Path, out: Path, size_mib: int) -> None:
    subprocess.run(["chown", "-R", "0:0", folder], check=True)
    done = subprocess.run(
        ["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum", "-m", "0", "-d", folder, out, f"{size_mib}M"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise PayloadError(
            f"a disk of {size_mib} MiB cannot be made from {folder}: {done.stderr.strip()}; see the sizes in vm/qemu.py"
        )
