"""The nft program: scripts in, listings out.

Rules of this file:
- Through standard input, never through a shell; started by its absolute path, with an empty environment.
- A script is one transaction: all of it, or nothing and a KernelError.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import msgspec

from garrison.common import limits
from garrison.common.errors import BackendUnsupportedError, KernelError
from garrison.minion.enforcers.nftables.script import FAMILY, TABLE, Present

__all__ = ["Nft"]

_PLACES: Final = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin"
_ERRNO: Final = (  # what nft says by name only
    ("Operation not permitted", errno.EPERM),
    ("No such file or directory", errno.ENOENT),
    ("Cannot allocate memory", errno.ENOMEM),
    ("Device or resource busy", errno.EBUSY),
    ("not supported", errno.EOPNOTSUPP),
)


class Nft:
    """Runs nft.

    Args:
        places: Where it is looked for.

    Raises:
        BackendUnsupportedError: There is none.
    """

    def __init__(self, places: str = _PLACES) -> None:
        found = shutil.which("nft", path=places)
        if found is None:
            raise BackendUnsupportedError("there is no nft on this machine", hint="install nftables")
        self._program = Path(found)

    def run(self, script: str, *, what: str) -> None:
        """Give ``script`` to the kernel.

        Raises:
            KernelError: Not all of it was possible, so nothing was done.
        """
        self._call(["-f", "-"], script, what)

    def table(self) -> Present | None:
        """Return what is in our table, elements left out; ``None`` when there is no such table."""
        listing = self._listing("-t")
        return None if listing is None else Present.of(listing)

    def digest(self) -> str:
        """Return a hash of all that is in our table, without figures; empty when there is no such table."""
        listing = self._listing()
        if listing is None:
            return ""
        kept = [item for item in listing if "counter" not in item]
        for item in kept:
            if elements := item.get("map", {}).get("elem"):
                elements.sort(key=msgspec.json.encode)  # the kernel keeps some in no order
        return hashlib.sha256(msgspec.json.encode(kept)).hexdigest()

    def _listing(self, *options: str) -> list[dict[str, Any]] | None:
        try:
            raw = self._call(["-j", *options, "list", "table", FAMILY, TABLE], "", "list our table")
        except KernelError as err:
            if err.errno == errno.ENOENT:
                return None
            raise
        items: list[dict[str, Any]] = msgspec.json.decode(raw)["nftables"]
        return [item for item in items if "metainfo" not in item and "table" not in item]

    def _call(self, options: list[str], script: str, what: str) -> bytes:
        argv = [str(self._program), *options]
        try:
            done = subprocess.run(
                argv, input=script.encode(), capture_output=True, check=False, timeout=limits.NFT_MAX_S, env={"LC_ALL": "C"}
            )
        except OSError as err:
            raise KernelError(err.errno or errno.EIO, f"run {self._program}") from err
        except subprocess.TimeoutExpired as err:
            raise KernelError(errno.ETIMEDOUT, f"nft: {what}") from err
        if done.returncode:
            said = done.stderr.decode(errors="replace").strip()[: limits.STRING_MAX_CHARS]
            number = next((number for text, number in _ERRNO if text in said), errno.EIO)
            raise KernelError(number, f"nft: {what}", hint=said)
        return done.stdout
