"""Builds the wheel of this checkout, from a copy of what git knows and the built objects: no stale build/ folder slips files in.

    dev.d/wheel.py FOLDER     builds into FOLDER and prints the wheel's path

Rules of this file:
- Objects are built in the checkout (``./dev bpf``) and copied; ``make`` in the copy then has nothing to do, or does it.
- The same content gives the same key, so that whoever needs wheels often keeps them by it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["WheelError", "build_wheel", "content_key"]

CHECKOUT = Path(__file__).resolve().parents[1]
BUILT = ("bpf/*.bpf.o", "minion/enforcers/fanotify/responder")  # git does not know them
NOT_IN_IT = ("tests/", "docs/", "vagrant/", "dev.d/")


class WheelError(Exception):
    """It cannot be built; the text is the builder's."""


def content_key() -> str:
    """Return a digest of all that goes into the wheel."""
    digest = hashlib.sha256()
    for path in _sources():
        name = path.relative_to(CHECKOUT).as_posix()
        if not name.startswith(NOT_IN_IT):
            digest.update(f"{name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def build_wheel(into: Path) -> Path:
    """Build the wheel into the folder ``into`` and return its path.

    Raises:
        WheelError: It does not build.
    """
    with tempfile.TemporaryDirectory(prefix="garrison-wheel-") as work:
        for path in _sources():
            copy = Path(work) / path.relative_to(CHECKOUT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
        _run("make", "-s", "-C", f"{work}/bpf", cwd=work)
        _run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(into.resolve()), ".", cwd=work)
    return next(into.glob("garrison-*.whl"))


def _sources() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], check=True, capture_output=True, cwd=CHECKOUT
    ).stdout.decode()
    known = (CHECKOUT / name for name in listed.split("\0") if name)
    built = (path for pattern in BUILT for path in CHECKOUT.glob(pattern))
    return sorted({path for path in (*known, *built) if path.is_file()})


def _run(*argv: str, cwd: str) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=cwd)
    if done.returncode:
        raise WheelError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{build_wheel(Path(sys.argv[1]))}\n")
    except WheelError as err:
        sys.exit(f"wheel: {err}")
