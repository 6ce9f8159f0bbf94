"""The ``key`` command of whoever has a CURVE key and a name in a directory: an agent, a relay."""

from __future__ import annotations

import json
from pathlib import Path

from garrison.cli.console import out_console, print_json_line
from garrison.common.names import fingerprint, node_name
from garrison.common.trust.curve import ensure_curve_key

__all__ = ["show_key"]


def show_key(what: str, directory: Path, wanted_name: str, *, as_json: bool) -> None:
    """Print name, public key and fingerprint; makes the key when there is none.

    Args:
        what: ``node`` or ``relay``.
        directory: Has ``curve.key``, and ``node`` with the pinned name after the first start; made when absent.
        wanted_name: Name until then.
        as_json: One JSON object.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    public, _ = ensure_curve_key(directory / "curve.key")
    pinned = directory / "node"
    name = node_name(pinned.read_text(encoding="ascii").strip() if pinned.exists() else wanted_name)
    if as_json:
        print_json_line(json.dumps({what: name, "key": public.decode(), "fingerprint": fingerprint(public)}))
        return
    console = out_console()
    console.print(f"{what:<12} {name}")
    console.print(f"key          {public.decode()}", markup=False)
    console.print(f"fingerprint  {fingerprint(public)}")
