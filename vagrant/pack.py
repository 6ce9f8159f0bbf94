"""Packs what ``Vagrantfile`` needs into ``.cache/box``: the lab's image as a libvirt box, its kernel, its key, and garrison.

Rules of this file:
- The box is the lab's image, bit for bit; ``garrison.box`` on the kernel's command line makes it one (see image/imagebuild.py).
- The box carries its recipe's hash in its name, so that Vagrant does not go on with an older one.
- garrison is packed anew each time.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "dev.d"))

from vm.lab import Image, VmError
from vm.payload import CHECKOUT, PayloadError, stage_code, stage_site

KERNEL = "6.1"
METADATA = {"provider": "libvirt", "format": "qcow2", "virtual_size": 2}
# What a box must contain besides the disk; everything is said in the project's own Vagrantfile.
BOX_VAGRANTFILE = 'Vagrant.configure("2") { |config| }\n'


def pack(box: Path) -> None:
    """Fill the folder ``box``; its file ``name`` is written last and says that it is complete."""
    image = Image.built()
    name = f"garrison-lab-{image.folder.name}"
    fresh = (box / "name").exists() and (box / "name").read_text().strip() == name
    if not fresh:
        shutil.rmtree(box, ignore_errors=True)
        box.mkdir(parents=True)
        for source, target in ((f"vmlinuz-{KERNEL}", "vmlinuz"), (f"initrd-{KERNEL}", "initrd"), ("id_ed25519", "id_ed25519")):
            shutil.copy(image.folder / source, box / target)
        _make_box(image.folder / "base.raw", box / "garrison-lab.box")
    _pack_garrison(box / "garrison.tar.gz")
    (box / "name").write_text(f"{name}\n")


def _make_box(disk: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        work = Path(folder)
        (work / "metadata.json").write_text(json.dumps(METADATA))
        (work / "Vagrantfile").write_text(BOX_VAGRANTFILE)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", disk, work / "box.img"], check=True)
        with tarfile.open(out, "w:gz", compresslevel=1) as archive:
            for name in ("metadata.json", "Vagrantfile", "box.img"):
                archive.add(work / name, arcname=name)


def _pack_garrison(out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        stage_site(Path(folder, "site-packages"))
        stage_code(Path(folder, "garrison"))
        with tarfile.open(out, "w:gz", compresslevel=1) as archive:
            for name in ("site-packages", "garrison"):
                archive.add(Path(folder, name), arcname=name, filter=_owned_by_root)


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    return entry


def main() -> int:
    """Pack; returns the exit code."""
    try:
        pack(CHECKOUT / ".cache" / "box")
    except (VmError, PayloadError) as err:
        sys.stderr.write(f"error: {err}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
