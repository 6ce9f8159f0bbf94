"""Users of this node and their groups, from ``/etc/passwd`` and ``/etc/group``.

Rules of this file:
- Files only: a directory service that does not answer must not hold up containers. A user who is in neither file has a number and
  no name.
- People who may log in count as workloads also while they are not there: a policy can name them.
Pure but for ``read_accounts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from garrison.minion.workloads.files import read_regular

__all__ = ["Account", "Accounts", "parse_accounts", "read_accounts"]

_NO_LOGIN: Final = ("nologin", "false", "sync")
_PEOPLE: Final = range(1000, 60_000)  # login.defs(5): UID_MIN and UID_MAX of people
_UID_MAX: Final = (1 << 32) - 2


class Account(msgspec.Struct, frozen=True):
    """One user.

    Attributes:
        name: Login name.
        uid: Number.
        home: Home directory.
        groups: Names of all groups that the user is in.
        logs_in: A person, or root, with a shell.
    """

    name: str
    uid: int
    home: str
    groups: tuple[str, ...]
    logs_in: bool


Accounts = Mapping[int, Account]
"""By number; of several names of one number the first counts."""


def parse_accounts(passwd: str, group: str) -> dict[int, Account]:
    """Return the users in the texts of the two files; lines that do not parse are left out."""
    names, member_of = dict[int, str](), dict[str, list[str]]()
    for name, _, gid, members in _lines(group, 4):
        if gid.isdecimal():
            names.setdefault(int(gid), name)
            for member in filter(None, members.split(",")):
                member_of.setdefault(member, []).append(name)
    found: dict[int, Account] = {}
    for name, _, uid, gid, _, home, shell in _lines(passwd, 7):
        if not (name and uid.isdecimal() and gid.isdecimal()) or int(uid) > _UID_MAX or int(uid) in found:
            continue
        groups = [names.get(int(gid), ""), *member_of.get(name, ())]
        found[int(uid)] = Account(
            name=name,
            uid=int(uid),
            home=home,
            groups=tuple(sorted({each for each in groups if each})),
            logs_in=(int(uid) in _PEOPLE or uid == "0") and shell.rpartition("/")[2] not in _NO_LOGIN,
        )
    return found


def read_accounts(root: Path = Path("/")) -> dict[int, Account]:
    """Return this node's users.

    Raises:
        OSError: One of the files cannot be read.
    """
    passwd, group = (read_regular(root / "etc" / name).decode(errors="replace") for name in ("passwd", "group"))
    return parse_accounts(passwd, group)


def _lines(text: str, fields: int) -> list[list[str]]:
    return [parts for line in text.splitlines() if len(parts := line.split(":")) == fields and not line.startswith("#")]
