"""The keys of a tenant on disk: what ``garrison init`` makes, what the master loads, what an author signs with.

Layout:
- Author's directory (kept off the master): ``author.key``, ``bundle-root.key``, ``assignment-root.key``, ``author.json`` and
  ``roots/``.
- Master's directory: ``curve.key``, ``join.json``, ``trust/`` with ``assignment.key``, ``master.json`` and both root chains as
  ``bundle-root/VERSION.json`` and ``assignment-root/VERSION.json``.

Rules of this file:
- Nothing is overwritten: a second set of keys would cut off every node that trusts the first.
- The author's directory remembers the highest bundle version it signed: a master that was restored from a backup cannot make an
  author sign one number twice.
Owns: names and modes of these files. Does not own: what the keys sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, TypeVar

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Targets

from garrison.common import limits
from garrison.common.errors import ConfigError, KernelError, SignatureError
from garrison.common.trust.curve import ensure_curve_key
from garrison.common.trust.durable import write_durably
from garrison.common.trust.join import JOIN_VERSION, JoinFile, check_endpoint, check_tenant, save_join
from garrison.common.trust.keys import load_key, make_key
from garrison.common.trust.metadata import RootChain, make_root

__all__ = ["AuthorKeys", "MasterTrust", "make_keyset"]

AUTHOR_KEY: Final = "author.key"
BUNDLE_ROOT_KEY: Final = "bundle-root.key"
ASSIGNMENT_ROOT_KEY: Final = "assignment-root.key"
_ONLINE_KEY: Final = "assignment.key"
_BUNDLE_ROOT: Final = "bundle-root"
_ASSIGNMENT_ROOT: Final = "assignment-root"
_ROOT_LIFETIME: Final = timedelta(days=3650)  # as long as a machine in the field: renewing a root needs its offline key
_FORMAT: Final = 1
_T = TypeVar("_T")


class _MasterFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    tenant: str


class _AuthorFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int
    tenant: str
    version: int = 0


def make_keyset(directory: Path, keys: Path, *, tenant: str, masters: Sequence[str]) -> JoinFile:
    """Make one key for each role, both trust roots and the join file; returns the join file.

    Args:
        directory: The master's directory; made with mode 0700 when absent.
        keys: The author's directory; likewise.
        tenant: Whose nodes these will be.
        masters: Where nodes reach the master, ``tcp://host:port``.

    Raises:
        ConfigError: There are keys already, the directories are nested, or a name or address is wrong. Nothing was written.
        KernelError: Something cannot be written.
    """
    check_tenant(tenant)
    for endpoint in masters:
        check_endpoint(endpoint)
    _refuse_existing(directory, keys)
    trust = directory / "trust"
    for path in (directory, keys, keys / "roots", trust, trust / _BUNDLE_ROOT, trust / _ASSIGNMENT_ROOT):
        _make_private(path)
    author, online = make_key(keys / AUTHOR_KEY), make_key(trust / _ONLINE_KEY)
    expires = datetime.now(UTC) + _ROOT_LIFETIME
    roots: dict[str, bytes] = {}
    for name, root_key, targets_key in (
        (_BUNDLE_ROOT, make_key(keys / BUNDLE_ROOT_KEY), author),
        (_ASSIGNMENT_ROOT, make_key(keys / ASSIGNMENT_ROOT_KEY), online),
    ):
        roots[name] = make_root(
            version=1,
            expires=expires,
            root_keys=[root_key.public_key],
            targets_keys=[targets_key.public_key],
            signers=[root_key],
        )
        write_durably(trust / name / "1.json", roots[name])
        write_durably(keys / "roots" / f"{name}-1.json", roots[name])
    write_durably(keys / "author.json", _json(_AuthorFile(v=_FORMAT, tenant=tenant)))
    write_durably(trust / "master.json", _json(_MasterFile(v=_FORMAT, tenant=tenant)))
    public, _ = ensure_curve_key(directory / "curve.key")
    join = JoinFile(
        v=JOIN_VERSION,
        tenant=tenant,
        masters=tuple(masters),
        server_key=public.decode(),
        bundle_root=roots[_BUNDLE_ROOT].decode(),
        assignment_root=roots[_ASSIGNMENT_ROOT].decode(),
    )
    save_join(join, directory / "join.json")  # last: whoever has it can count on the rest
    return join


def _refuse_existing(directory: Path, keys: Path) -> None:
    for path in (
        directory / "trust",
        directory / "join.json",
        directory / "curve.key",
        keys / AUTHOR_KEY,
        keys / BUNDLE_ROOT_KEY,
    ):
        if path.exists():
            raise ConfigError(
                f"there is a key set already: {path}",
                hint="nodes trust those keys; name other directories, or remove these if no node has joined yet",
            )
    inner, outer = keys.resolve(), directory.resolve()
    if inner == outer or outer in inner.parents:
        raise ConfigError(
            f"the author's keys must not lie in the master's directory {directory}",
            hint="name another directory with --keys, better on another machine: the master must not be able to sign policy",
        )


def _make_private(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as err:
        raise KernelError(err.errno or 0, f"make directory {path}") from err


@dataclass(frozen=True)
class MasterTrust:
    """What a master trusts and signs with.

    Attributes:
        tenant: Whose nodes it has.
        authors: Root chain of the bundle repository.
        assignments: Root chain of the assignment repository.
        signer: The assignment key.
    """

    tenant: str
    authors: RootChain
    assignments: RootChain
    signer: CryptoSigner

    @classmethod
    def load(cls, directory: Path) -> MasterTrust:
        """Return the trust in a master's directory.

        Raises:
            ConfigError: It is incomplete or damaged, or the root does not name the assignment key.
        """
        trust = directory / "trust"
        if not trust.is_dir():
            raise ConfigError(f"{directory} is no master's directory", hint=f"make it: garrison init --dir {directory} ...")
        tenant = _read_json(trust / "master.json", _MasterFile).tenant
        authors, assignments = _load_chain(trust / _BUNDLE_ROOT), _load_chain(trust / _ASSIGNMENT_ROOT)
        signer = load_key(trust / _ONLINE_KEY, "the master's assignment key")
        if signer.public_key.keyid not in assignments.newest.roles[Targets.type].keyids:
            raise ConfigError(
                f"{trust / _ONLINE_KEY} is not the key that the newest assignment root names",
                hint="no node would follow it; put back the key, or the root that names it",
            )
        return cls(check_tenant(tenant), authors, assignments, signer)


@dataclass(frozen=True)
class AuthorKeys:
    """What an author signs with.

    Attributes:
        directory: Where the keys are.
        tenant: Whose policy it is.
        signers: Author keys, one for each ``author*.key``.
        version: Highest bundle version signed here, 0 for none.
    """

    directory: Path
    tenant: str
    signers: tuple[CryptoSigner, ...]
    version: int

    @classmethod
    def load(cls, directory: Path) -> AuthorKeys:
        """Return the keys in an author's directory.

        Raises:
            ConfigError: There are none, or they cannot be used.
        """
        paths = sorted(directory.glob("author*.key"))
        if not paths:
            raise ConfigError(f"{directory} holds no author's key", hint="name the directory of `garrison init` with --keys")
        file = _read_json(directory / "author.json", _AuthorFile)
        signers = tuple(load_key(path, "the author's key") for path in paths)
        return cls(directory, check_tenant(file.tenant), signers, file.version)

    def claim_version(self, held: int) -> int:
        """Return the version for the next bundle and remember it durably, before anything is signed with it.

        Args:
            held: The version that the master says it has.

        Raises:
            ConfigError: The master's number is so far ahead that no node would follow.
            KernelError: It cannot be remembered.
        """
        if (self.version and held - self.version > limits.VERSION_STEP_MAX) or held >= limits.VERSION_MAX:
            raise ConfigError(
                f"the master says it holds bundle version {held}, this author last signed {self.version}",
                hint="find out who signed in between before you sign",
            )
        version = max(self.version, held) + 1
        write_durably(self.directory / "author.json", _json(_AuthorFile(v=_FORMAT, tenant=self.tenant, version=version)))
        return version


def _load_chain(directory: Path) -> RootChain:
    paths = sorted((path for path in directory.glob("*.json") if path.stem.isdigit()), key=lambda path: int(path.stem))
    try:
        roots = [path.read_bytes() for path in paths]
        if not roots:
            raise ConfigError(f"{directory} holds no trust root", hint="restore the master's directory from a backup")
        return RootChain.start(roots[0]).extend(roots[1:])
    except OSError as err:
        raise ConfigError(f"the trust root in {directory} cannot be read: {err.strerror}") from err
    except SignatureError as err:
        raise ConfigError(f"the trust roots in {directory} do not follow each other") from err


def _read_json(path: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except OSError as err:
        raise ConfigError(f"{path} cannot be read: {err.strerror}") from err
    except msgspec.DecodeError as err:
        raise ConfigError(f"{path} is damaged: {err}") from err


def _json(value: msgspec.Struct) -> bytes:
    return msgspec.json.encode(value) + b"\n"
