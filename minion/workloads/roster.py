"""The workloads of this node: what the cgroup tree, unit files, accounts and container engines say, put together.

Rules of this file:
- What runs comes first; what does not run is told too, so that a policy that names it is seen to select something.
- Past ``WORKLOADS_MAX`` the rest is left out and counted: first what does not run, then what users run.
- A container that no engine knows yet is told at once, without labels, and looked up again for a few seconds: its engine may
  still be writing.
Owns: which workloads there are. Does not own: how changes are noticed (``watcher``), what a label means.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from garrison.common import limits
from garrison.minion.workloads import describe
from garrison.minion.workloads.accounts import Account, read_accounts
from garrison.minion.workloads.engines import ContainerFacts
from garrison.minion.workloads.model import Workload
from garrison.minion.workloads.places import ROOT, Place
from garrison.minion.workloads.stores import Stores
from garrison.minion.workloads.tree import Change, Tree
from garrison.minion.workloads.units import USER_PATHS, UnitFacts, Units, read_units

__all__ = ["Roster"]

# Process 1, the agent and its deadman: what they need is not for a label to take from them.
_NOBODYS: Final = re.compile(r"init\.scope|garrison-(?:minion|enforce)\.service|garrison-deadman-[0-9a-f]+\.scope")
_AGAIN_S: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)  # pauses before looking a container up again


class Roster:
    """What there is.

    Args:
        tree: The cgroup tree, not yet walked.
        stores: Where containers are looked up.
        root: Where the file system begins; tests have their own.

    Attributes:
        labels_left_out: Labels that were too long, too many, or not to be taken over.
        left_out: Workloads beyond ``WORKLOADS_MAX``.
        trouble: Why users have no names at present; empty when they have.
    """

    def __init__(self, tree: Tree, stores: Stores, root: Path = Path("/")) -> None:
        self._tree, self._stores, self._root = tree, stores, root
        self._units, self._user_units = Units(), Units()
        self._accounts: Mapping[int, Account] = {}
        self._made: dict[str, Workload] = {}
        self._idle_units: dict[str, Workload] = {}
        self._idle_users: dict[int, Workload] = {}
        self._facts: dict[str, ContainerFacts] = {}
        self._again: dict[str, tuple[float, int]] = {}
        self._cut: dict[str, int] = {}
        self.left_out = 0
        self.trouble = ""

    @property
    def labels_left_out(self) -> int:
        """See the class."""
        return sum(self._cut.values())

    @property
    def unknown(self) -> int:
        """Containers that no engine knows."""
        return sum(path not in self._facts for path, _ in self._containers())

    # ---- changes -------------------------------------------------------------------------------------------------------
    def read_files(self) -> None:
        """Read unit files and accounts again, and describe everything anew."""
        self._units, self._user_units = read_units(self._root), read_units(self._root, USER_PATHS)
        try:
            self._accounts, self.trouble = read_accounts(self._root), ""
        except OSError as err:  # the names of before go on; without any, numbers stand for users
            self.trouble = f"users and groups cannot be read: {err}"
        self._made, self._idle_units, self._idle_users = {}, {}, {}
        for path in self._tree.places:
            self._describe(path)
        self._describe_idle()

    def follow(self, change: Change) -> None:
        """Take over what became of the tree."""
        for path in change.went:
            self._made.pop(path, None)
            self._facts.pop(path, None)
            self._again.pop(path, None)
            self._cut.pop(path, None)
        # Root's containers first: users' may have to be waited for.
        came = [path for path in change.came if path in self._tree.places]  # else gone again meanwhile
        for path in sorted(came, key=lambda path: self._tree.places[path].uid > 0):
            self._describe(path)

    def next_look(self) -> float | None:
        """Return when (monotonic) a container is to be looked up again; ``None`` for never."""
        return min((due for due, _ in self._again.values()), default=None)

    def look_again(self) -> None:
        """Look up the containers whose time has come."""
        now = time.monotonic()
        for path in [path for path, (due, _) in self._again.items() if due <= now]:
            self._describe(path)

    # ---- what there is -------------------------------------------------------------------------------------------------
    def workloads(self) -> tuple[Workload, ...]:
        """Return all of them, at most ``WORKLOADS_MAX``."""
        users = [path for path in self._made if self._tree.places[path].uid > 0]
        theirs = set(users)
        found = [made for path, made in self._made.items() if path not in theirs]
        found += [self._made[path] for path in users]
        found += self._idle()
        self.left_out = max(0, len(found) - limits.WORKLOADS_MAX)
        return tuple(found[: limits.WORKLOADS_MAX])

    def containers(self) -> dict[str, Workload]:
        """Return the containers by their id."""
        return {place.container: self._made[path] for path, place in self._containers() if path in self._made}

    def _containers(self) -> list[tuple[str, Place]]:
        return [(path, place) for path, place in self._tree.places.items() if place.container]

    def _describe(self, path: str) -> None:
        place, number = self._tree.places[path], self._tree.numbers[path]
        account = self._accounts.get(place.uid)
        if place.container:
            facts = self._look_up(path, place, account)
            made, cut = describe.container(place, facts, account, cgroup=path, cgroup_id=number)
        elif place.unit and path.endswith(f"/{place.unit}") and not (place.uid == ROOT and _NOBODYS.fullmatch(place.unit)):
            made, cut = describe.unit(place, self._unit_facts(place), account, cgroup=path, cgroup_id=number)
        elif place.uid != ROOT and path == _home(place.uid):
            made, cut = describe.user(place.uid, account, cgroup=path, cgroup_id=number), 0
        else:
            return
        self._made[path], self._cut[path] = made, cut

    def _look_up(self, path: str, place: Place, account: Account | None) -> ContainerFacts | None:
        if path in self._facts:
            return self._facts[path]
        if place.uid > 0:
            facts = self._stores.of_user(account, place.container) if account else None
        else:
            facts = self._stores.of_root(place.container, _namespace(path, place))
        if facts is not None:
            self._facts[path] = facts
            self._again.pop(path, None)
            return facts
        tries = self._again.get(path, (0.0, 0))[1]
        if tries < len(_AGAIN_S):
            self._again[path] = (time.monotonic() + _AGAIN_S[tries], tries + 1)
        else:
            self._again.pop(path, None)
        return None

    def _unit_facts(self, place: Place) -> UnitFacts:
        return (self._units if place.uid == ROOT else self._user_units).facts(place.unit)

    def _describe_idle(self) -> None:
        for name in sorted(self._units.names()):
            cgroup = self._units.cgroup(name)
            if not cgroup or _NOBODYS.fullmatch(name):
                continue  # where it will be cannot be told: known once it runs
            around = [part for part in cgroup.split("/") if part.endswith(".slice")]
            place = Place(slice=around[-1] if around else "-.slice", unit=name)
            self._idle_units[name] = describe.unit(place, self._units.facts(name), None, cgroup=cgroup, cgroup_id=0)[0]
        for uid, account in sorted(self._accounts.items()):
            if account.logs_in:
                self._idle_users[uid] = describe.user(uid, account, cgroup=_home(uid), cgroup_id=0)

    def _idle(self) -> list[Workload]:
        running = {place.unit for place in self._tree.places.values() if place.uid == ROOT}
        here = {place.uid for place in self._tree.places.values()}
        units = [made for name, made in self._idle_units.items() if name not in running]
        return units + [made for uid, made in self._idle_users.items() if uid not in here]


def _home(uid: int) -> str:
    return f"/user.slice/user-{uid}.slice"


def _namespace(path: str, place: Place) -> str:
    """Return containerd's namespace for a cgroup ``/NAMESPACE/ID``; empty for other places."""
    parts = path.strip("/").split("/")
    return parts[0] if len(parts) == 2 and place.slice == "-.slice" and parts[1] == place.container else ""  # noqa: PLR2004
