"""Reads an inventory by running ansible-inventory, so that every format and plugin of Ansible's means what it means there.

Rules of this file:
- A process of its own: Ansible's code never runs inside the master or the command line.
- An inventory that cannot be parsed completely is an error, not a warning: a forgotten host would be a host without policy.
- The user's own Ansible configuration counts, as for every other Ansible command.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.common.errors import InventoryError
from garrison.master.inventory import cache
from garrison.master.inventory.model import Inventory

__all__ = ["ENV_INVENTORY", "find_inventory", "read_inventory"]

ENV_INVENTORY: Final = "GARRISON_INVENTORY"
_PLACES: Final = (Path("inventory"), Path("/etc/garrison/inventory"))
_SETTINGS: Final = {
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "True",
    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "True",
    "ANSIBLE_LOCALHOST_WARNING": "False",
    "ANSIBLE_DEPRECATION_WARNINGS": "False",
    "ANSIBLE_DEVEL_WARNING": "False",
    "ANSIBLE_NOCOLOR": "True",
    "ANSIBLE_LOAD_CALLBACK_PLUGINS": "False",
    "PYTHONWARNINGS": "ignore",
}


def find_inventory() -> Path:
    """Return ``$GARRISON_INVENTORY``, else ``./inventory``, else ``/etc/garrison/inventory``.

    Raises:
        InventoryError: None of them exists.
    """
    named = os.environ.get(ENV_INVENTORY)
    if named:
        return Path(named)
    for place in _PLACES:
        if place.exists():
            return place
    raise InventoryError(
        "there is no inventory",
        hint=f"make ./inventory or /etc/garrison/inventory, or name one with --inventory or {ENV_INVENTORY}",
    )


def read_inventory(path: Path | None = None) -> Inventory:
    """Return the inventory at ``path``, or the usual one.

    Args:
        path: File or directory; ``None`` for what ``find_inventory`` finds.

    Raises:
        InventoryError: It does not exist or cannot be parsed, or ansible-inventory is missing or does not end.
    """
    source = path or find_inventory()
    if not source.exists():
        raise InventoryError(f"inventory {source} does not exist", hint=f"name one with --inventory or {ENV_INVENTORY}")
    program = _program()
    key = cache.cache_key(source.absolute(), program)
    if key is not None and (remembered := cache.load(key)) is not None:
        try:
            return Inventory.from_json(remembered, source=str(source))
        except InventoryError:  # cut short by a full disk: read anew
            pass
    answer = _run(program, source)
    inventory = Inventory.from_json(answer, source=str(source))
    if key is not None and key == cache.cache_key(source.absolute(), program):  # not edited while it was read
        cache.store(key, answer)
    return inventory


def _program() -> Path:
    beside = Path(sys.executable).parent / "ansible-inventory"
    found = str(beside) if beside.exists() else shutil.which("ansible-inventory")
    if found is None:
        raise InventoryError(
            "ansible-inventory is not installed, so the inventory cannot be read",
            hint="install garrison with its extra: garrison[master]",
        )
    return Path(found)


def _run(program: Path, source: Path) -> bytes:
    locale = {} if "UTF-8" in os.environ.get("LC_ALL", "").upper() else {"LC_ALL": "C.UTF-8"}  # Ansible refuses any other
    try:
        done = subprocess.run(
            [str(program), "--inventory", str(source.absolute()), "--list"],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=limits.INVENTORY_TIMEOUT_S,
            env={**os.environ, **_SETTINGS, **locale},
        )
    except OSError as err:
        raise InventoryError(f"{program} cannot be run: {err.strerror}") from err
    except subprocess.TimeoutExpired as err:
        raise InventoryError(
            f"inventory {source} was not read within {limits.INVENTORY_TIMEOUT_S:g} s", hint="a plugin or script in it hangs"
        ) from err
    if done.returncode != 0:
        raise InventoryError(
            f"inventory {source} cannot be read: {_complaint(done.stderr)}", hint=f"try: {program} -i {source} --list"
        )
    if len(done.stdout) > limits.INVENTORY_MAX_BYTES:
        raise InventoryError(f"inventory {source} takes {len(done.stdout)} bytes, the limit is {limits.INVENTORY_MAX_BYTES}")
    return done.stdout


def _complaint(stderr: bytes) -> str:
    """Return what Ansible says, in one line: its errors, or all of it when it names none."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines() if line.strip()]
    at = next((n for n, line in enumerate(lines) if "ERROR" in line), 0)
    return " ".join(lines[at:])[:1000] or "no reason given"
