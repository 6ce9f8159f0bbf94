"""Builds the lab's VM image: a small Debian 12 root, kernels that can be booted on it, and their initrds.

Rules of this file:
- Everything comes from Debian packages, from the mirror that this machine's own apt uses. No mirror is named here.
- One folder per recipe: its name is the hash of the files here that go into it. A folder that exists is complete (renamed last).
- No loop device and no mount: ``mke2fs -d`` keeps owners, modes and xattrs.
- The image knows nothing of a test: names, addresses and disks are given to a VM when it starts (``guest/usr/local/sbin/vmsh``).
- With ``garrison.box`` on the kernel's command line the same image is a Vagrant box: DHCP, and no command channel.

Owns: the root's content, kernels, initrds, the lab's SSH key. Does not own: how a VM is run (tests/vm/lab.py), the Vagrant box's
wrapping (vagrant/pack).
Prints the folder on stdout and progress on stderr. Needs root and the packages of ``./dev vm``. Exit code 1: could not be built.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BuildError", "Mirror", "build", "cache_folder", "recipe_hash"]

HERE = Path(__file__).resolve().parent
SUITE = "bookworm"
BACKPORTS = f"{SUITE}-backports"
ARCH = "amd64"
KERNEL_PACKAGE = f"linux-image-cloud-{ARCH}"
# Series that tests ask for: the oldest with all BPF LSM hooks we use, and the newest that Debian 12 offers.
SERIES = ("6.1", "6.12")
PACKAGES = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "udev",
    "kmod",
    "python3",
    "openssh-server",
    "libbpf1",
    "apparmor",
    "iproute2",
    "nftables",
    "iputils-ping",
    "procps",
    "strace",
    "sudo",
    "busybox-static",
    "libpam-systemd",  # logins become sessions in user slices
    # Containers of root and of users. netavark is there because a dependency of podman wants a network stack: nothing uses it.
    "podman",
    "crun",
    "netavark",
    "uidmap",
    "dbus-user-session",
]
# Beside the cloud kernels, which have no USB: Debian's ordinary kernel, with the modules named here and what they need.
USB_SERIES = "6.1-usb"
USB_KERNEL_PACKAGE = f"linux-image-{ARCH}"
USB_MODULES = [
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "ext4",
    "xhci_pci",
    "usbhid",
    "hid_generic",
    "usb_storage",
    "uas",
    "sd_mod",
]
# Parts of the kernel's module tree that a VM of the lab can use; the rest is drivers of machines that QEMU does not show.
MODULES = [
    "arch",
    "crypto",
    "lib",
    "net",
    "block",
    "fs/ext4",
    "fs/jbd2",
    "fs/overlayfs",
    "fs/fuse",
    "fs/squashfs",
    "drivers/block",
    "drivers/char",
    "drivers/net",
    "drivers/virtio",
]
NOT_MODULES = ["drivers/net/ethernet", "drivers/net/wireless", "drivers/net/usb", "drivers/block/drbd"]
USERS = {"alice": 1000, "bob": 1001, "vagrant": 1002}  # no passwords; vagrant may sudo, as Vagrant wants it
# Work that a test machine must not begin by itself in the middle of a measurement.
MASKED_UNITS = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-timesyncd.service",
    "getty@tty1.service",
    "systemd-pstore.service",
]
UNITS = ["lab-net.service", "vmsh.service", "systemd-networkd.service"]
EMPTIED = ("var/lib/apt/lists", "var/cache/apt", "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info")
UNUSED_S = 14 * 86400  # images of other recipes are kept this long after their last use
DISK_MIB = 1400  # sparse; Vagrant boxes and templates grow on overlays of the same size


class BuildError(Exception):
    """The image cannot be built. ``args``: what failed and, if there is one, the remedy."""


@dataclass(frozen=True)
class Mirror:
    """Where this machine's apt gets Debian from.

    Attributes:
        main: Base address of the archive, which also has the backports.
        security: Base address of the security archive, or None if this machine does not use it.
    """

    main: str
    security: str | None

    @classmethod
    def of_this_machine(cls) -> Mirror:
        """Ask apt.

        Raises:
            BuildError: apt has no Debian archive.
        """
        listed = _run(
            "apt-get", "indextargets", "--format", "$(ORIGIN)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)", "Created-By: Packages"
        )
        main = security = None
        for line in listed.splitlines():
            origin, release, component, uri = line.split("|")
            if origin != "Debian" or component != "main":
                continue
            if release.endswith("-security"):
                security = security or uri
            elif "-" not in release:
                main = main or uri
        if main is None:
            raise BuildError(
                "apt on this machine knows no Debian archive, so there is nothing to build the VM image from",
                "add one to the apt sources and run: apt-get update",
            )
        return cls(main, security)

    def sources(self, *, backports: bool) -> str:
        """Return a sources.list for the guest's suites."""
        lines = [f"deb {self.main} {SUITE} main"]
        if self.security:
            lines.append(f"deb {self.security} {SUITE}-security main")
        if backports:
            lines.append(f"deb {self.main} {BACKPORTS} main")
        return "\n".join(lines) + "\n"


def recipe_hash() -> str:
    """Return the name of this recipe: changes when any file that goes into the image does."""
    digest = hashlib.sha256()
    files = [HERE / "imagebuild.py", HERE / "initrd-init", *sorted(p for p in (HERE / "guest").rglob("*") if p.is_file())]
    for path in files:
        digest.update(f"{path.relative_to(HERE)} {path.stat().st_mode & 0o111:o}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """Return where images are kept: ``$GARRISON_LAB_CACHE``, or ``.cache/lab`` in the checkout."""
    return Path(os.environ.get("GARRISON_LAB_CACHE") or HERE.parents[1] / ".cache" / "lab").resolve()


def build(cache: Path) -> Path:
    """Return the folder of this recipe's image, building it first if it is not there.

    The folder holds ``base.raw`` (ext4, never to be written again), ``vmlinuz-SERIES`` and ``initrd-SERIES``, ``id_ed25519``
    (lets root and users in by SSH) and ``manifest.json``: ``kernels`` (release by series), ``missing`` (why, by series) and
    ``packages`` (version by name).

    Raises:
        BuildError: A tool, the mirror or a package is not to be had.
    """
    cache.mkdir(parents=True, exist_ok=True)
    image = cache / recipe_hash()
    with _locked(cache / "build.lock"):
        if not image.is_dir():
            _require_tools()
            work = Path(tempfile.mkdtemp(prefix="building-", dir=cache))
            work.chmod(0o755)
            try:
                _build_in(work, cache / "debs")
                (work / "image").rename(image)
            finally:
                shutil.rmtree(work)
            _prune(cache)
        (image / "manifest.json").touch()
    return image


def _prune(cache: Path) -> None:
    """Remove images that no checkout has asked for of late: each takes half a gigabyte with its templates."""
    for manifest in cache.glob("*/manifest.json"):
        if time.time() - manifest.stat().st_mtime > UNUSED_S:
            shutil.rmtree(manifest.parent)


def _build_in(work: Path, debs: Path) -> None:
    clock = _Clock()
    mirror = Mirror.of_this_machine()
    image, root = work / "image", work / "root"
    image.mkdir()
    debs.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as pool:
        kernels = pool.submit(_fetch_kernels, mirror, work / "apt", work / "kernels")
        _bootstrap(mirror, root, debs)
        clock.say("Debian root")
        trees, missing = kernels.result()
    clock.say(f"kernels: {', '.join(f'{s} = {t.name}' for s, t in trees.items())}")
    for series, why in missing.items():
        clock.say(f"NO kernel {series}: {why}")
    _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "garrison lab", "-f", str(image / "id_ed25519"))
    packages = _run("chroot", str(root), "dpkg-query", "-W", "-f", "${Package} ${Version}\\n")
    _furnish(root, (image / "id_ed25519.pub").read_bytes())
    for series, tree in trees.items():
        if series == USB_SERIES:
            _add_named_modules(root, tree, USB_MODULES)
        else:
            _add_modules(root, tree)
        shutil.copy(tree / "boot" / f"vmlinuz-{tree.name}", image / f"vmlinuz-{series}")
        _make_initrd(root, tree.name, work / f"initrd-{series}", image / f"initrd-{series}")
    clock.say("furnished, initrds")
    make_disk(root, image / "base.raw", DISK_MIB, label="garrison-lab")
    manifest = {
        "kernels": {series: tree.name for series, tree in trees.items()},
        "missing": missing,
        "packages": dict(line.split(" ", 1) for line in packages.splitlines()),
    }
    (image / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    clock.say("disk")


# ---- Debian ----------------------------------------------------------------------------------------------------------


def _bootstrap(mirror: Mirror, root: Path, debs: Path) -> None:
    _run(
        "debootstrap", "--variant=minbase", f"--arch={ARCH}", f"--include={','.join(PACKAGES)}", f"--cache-dir={debs}",
        SUITE, str(root), mirror.main,
        remedy=f"the log is {root}/debootstrap/debootstrap.log while it runs; is the mirror of this machine's apt reachable?",
    )  # fmt: skip


def _fetch_kernels(mirror: Mirror, state: Path, into: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Unpack one kernel per series into ``into``; returns trees, named after the release, and why others are missing."""
    missing = {}
    try:
        apt = _private_apt(state, mirror.sources(backports=True))
    except BuildError as err:
        missing[SERIES[-1]] = f"{BACKPORTS} cannot be read from this machine's mirror: {err.args[0].splitlines()[-1]}"
        apt = _private_apt(state, mirror.sources(backports=False))
    offered = _offered_kernels(_run("apt-cache", *apt, "show", KERNEL_PACKAGE))
    trees = {}
    ordinary = _offered_kernels(_run("apt-cache", *apt, "show", USB_KERNEL_PACKAGE))
    if package := ordinary.get(USB_SERIES.removesuffix("-usb")):
        offered[USB_SERIES] = package
    for series in (*SERIES, USB_SERIES):
        if series not in offered:
            missing.setdefault(series, f"no kernel of this series in {SUITE} or {BACKPORTS} of this machine's mirror")
            continue
        package = offered[series]
        tree = into / package.removeprefix("linux-image-")
        tree.mkdir(parents=True)
        _run("apt-get", "-qq", *apt, "download", package, cwd=tree)
        _run("dpkg-deb", "-x", str(next(tree.glob("*.deb"))), str(tree))
        trees[series] = tree
    if not trees:
        raise BuildError("no kernel is to be had: " + "; ".join(missing.values()))
    return trees, missing


def _private_apt(state: Path, sources: str) -> list[str]:
    """Return options that make apt use ``sources`` and folders of its own, so that this machine's apt is left as it is."""
    for folder in ("lists/partial", "cache/archives/partial"):
        (state / folder).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    (state / "sources.list").write_text(sources)
    options = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": state / "lists",
        "Dir::State::Status": state / "status",
        "Dir::Cache": state / "cache",
        "APT::Sandbox::User": "root",
        "APT::Architecture": ARCH,
        "Acquire::Languages": "none",
    }
    argv = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    _run("apt-get", "-qq", *argv, "-o", "APT::Update::Error-Mode=any", "update", remedy="is the mirror reachable?")
    return argv


def _offered_kernels(stanzas: str) -> dict[str, str]:
    """Return the newest kernel package per series, from what ``apt-cache show`` said of the metapackage (newest first)."""
    offered: dict[str, str] = {}
    for stanza in stanzas.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in stanza.splitlines() if ": " in line and not line.startswith(" "))
        series = ".".join(fields.get("Version", "").split(".")[:2])
        if series in SERIES and series not in offered:
            offered[series] = fields["Depends"].split(" ", 1)[0].rstrip(",")
    return offered


# ---- the root --------------------------------------------------------------------------------------------------------


def _furnish(root: Path, public_key: bytes) -> None:
    for name in EMPTIED:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    shutil.copytree(HERE / "guest", root, dirs_exist_ok=True, symlinks=True, copy_function=_copy_as_root)
    (root / "etc/fstab").write_text("")
    (root / "etc/hostname").write_text("lab\n")
    # Made anew at boot: machines that shared an id would be given one DHCP address. D-Bus's copy would be taken for it.
    (root / "etc/machine-id").write_text("")
    (root / "var/lib/dbus/machine-id").unlink(missing_ok=True)
    for unit in MASKED_UNITS:
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")
    _run("chroot", str(root), "systemctl", "--quiet", "enable", *UNITS)
    for user, uid in USERS.items():
        # "*" and not the default "!": sshd takes "!" for a locked account and refuses its keys too.
        _run("chroot", str(root), "useradd", "-m", "-u", str(uid), "-s", "/bin/bash", "-p", "*", user)
        _authorize(root / "home" / user, uid, public_key)
    _authorize(root / "root", 0, public_key)
    _run("chroot", str(root), "python3", "-m", "compileall", "-q", "/usr/lib/python3.11")


def _copy_as_root(source: str, target: str) -> str:
    shutil.copyfile(source, target)
    os.chown(target, 0, 0)
    Path(target).chmod(0o755 if os.access(source, os.X_OK) and Path(source).stat().st_mode & 0o100 else 0o644)
    return target


def _authorize(home: Path, uid: int, public_key: bytes) -> None:
    folder = home / ".ssh"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o700)
    (folder / "authorized_keys").write_bytes(public_key)
    for path in (folder, folder / "authorized_keys"):
        os.chown(path, uid, uid)


def _add_modules(root: Path, tree: Path) -> None:
    source, target = tree / "lib/modules" / tree.name, root / "usr/lib/modules" / tree.name
    target.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / name, target)
    for part in MODULES:
        if (source / "kernel" / part).is_dir():
            shutil.copytree(source / "kernel" / part, target / "kernel" / part)
    for part in NOT_MODULES:
        shutil.rmtree(target / "kernel" / part, ignore_errors=True)
    _run("depmod", "-b", str(root), tree.name)


def _add_named_modules(root: Path, tree: Path, names: list[str]) -> None:
    """Add these modules of a kernel and what they need: the whole tree takes 300 MB."""
    source, target = tree / "lib/modules" / tree.name, root / "usr/lib/modules" / tree.name
    target.mkdir(parents=True)
    for name in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / name, target)
    _run("depmod", "-b", str(tree), tree.name)
    for path in _modules_in_order(tree, tree.name, names):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    _run("depmod", "-b", str(root), tree.name)


def _make_initrd(root: Path, release: str, folder: Path, out: Path) -> None:
    """Write an initrd that loads the disk's driver and goes on to the root: busybox, modules in load order, ``initrd-init``."""
    for name in ("bin", "dev", "proc", "new", "modules"):
        (folder / name).mkdir(parents=True)
    shutil.copy(root / "bin/busybox", folder / "bin/busybox")
    shutil.copy(HERE / "initrd-init", folder / "init")
    for number, path in enumerate(_modules_in_order(root, release, ["virtio_pci", "virtio_blk", "ext4"])):
        content = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
        (folder / "modules" / f"{number:02}-{path.name.removesuffix('.xz')}").write_bytes(content)
    _run("sh", "-c", 'find . | cpio -o -H newc --quiet -R 0:0 | gzip -6 >"$0"', str(out), cwd=folder)


def _modules_in_order(root: Path, release: str, names: list[str]) -> list[Path]:
    """Return the files of the modules and what they need, each before its users; those built into the kernel are not in it."""
    paths: dict[Path, None] = {}
    for name in names:
        for line in _run("modprobe", "-d", str(root), "-S", release, "--show-depends", name).splitlines():
            verb, path = line.split()[:2]
            if verb == "insmod":
                paths.setdefault(Path(path))
    return list(paths)


def make_disk(folder: Path, out: Path, size_mib: int, *, label: str) -> None:
    """Write an ext4 file system with the content of ``folder`` to a new sparse file of exactly ``size_mib`` MiB.

    It has a small journal, so that a power cut does to a test what it does to a real machine; checksums of metadata are off,
    since emulated CPUs pay for them.
    """
    _run(
        "mke2fs", "-q", "-F", "-t", "ext4", "-L", label, "-O", "^metadata_csum", "-J", "size=8", "-m", "0",
        "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", str(folder), str(out), f"{size_mib}M",
    )  # fmt: skip


# ---- small tools -----------------------------------------------------------------------------------------------------


class _Clock:
    def __init__(self) -> None:
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        sys.stderr.write(f"image: {time.monotonic() - self._began:5.1f} s  {what}\n")


def _require_tools() -> None:
    if os.geteuid() != 0:
        raise BuildError("building the VM image needs root: debootstrap makes a tree owned by root", "run it as root")
    tools = ["debootstrap", "mke2fs", "depmod", "modprobe", "cpio", "ssh-keygen", "dpkg-deb", "apt-get"]
    absent = [tool for tool in tools if shutil.which(tool) is None]
    if absent:
        raise BuildError(f"not installed: {' '.join(absent)}", "run ./dev vm, which installs what it needs")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(*argv: str, cwd: Path | None = None, remedy: str = "") -> str:
    env = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(argv, check=False, capture_output=True, text=True, cwd=cwd, env=env)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise BuildError(f"{argv[0]} failed with exit code {done.returncode}: {said}", *([remedy] if remedy else []))
    return done.stdout


def main() -> int:
    """Build and print the folder."""
    parser = argparse.ArgumentParser(description="Build the lab's VM image, once per recipe, and print its folder.")
    parser.add_argument("--cache", type=Path, default=cache_folder(), help="default: $GARRISON_LAB_CACHE or .cache/lab")
    try:
        sys.stdout.write(f"{build(parser.parse_args().cache.resolve())}\n")
    except BuildError as err:
        sys.stderr.write("\n".join([f"error: {err.args[0]}", *(f"hint: {remedy}" for remedy in err.args[1:])]) + "\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
