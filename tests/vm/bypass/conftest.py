"""Programs that the tricks need, built once."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_BARE = ("gcc", "-O1", "-nostdlib", "-ffreestanding", "-fno-stack-protector")


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """``tricks32``: of 32 bits; ``hello``: static; ``borrowed``: names /srv/p/hello as its dynamic linker."""
    folder = tmp_path_factory.mktemp("programs")
    built = {
        "tricks32": (*_BARE, "-m32", "-static", "-no-pie", str(_HERE / "tricks32.c")),
        "hello": (*_BARE, "-static-pie", "-fPIE", str(_HERE / "hello.c")),
        "borrowed": (*_BARE, "-pie", "-fPIE", "-Wl,--dynamic-linker=/srv/p/hello", str(_HERE / "hello.c")),
    }
    for name, command in built.items():
        subprocess.run([*command, "-o", str(folder / name)], check=True)
    return {name: (folder / name).read_bytes() for name in built}
