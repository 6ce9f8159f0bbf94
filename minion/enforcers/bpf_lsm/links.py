"""Which programs are attached: those that do something under the rules in the kernel, and those that are always needed.

    PINS/<version>/programs/<name>  links/<name>

Rules of this file:
- A program is attached as long as its link is pinned. There is nothing else to know, so who takes over knows all.
- What rules need is attached before they hold, and taken away only when they hold no more and are not kept for the way back.
  Going back may be a single write, with nobody there to attach anything.
- Failing to attach is an error, and rules that need it are not switched to (closed). Failing to take away costs time: logged.
Owns: links. Does not own: which rules need what (``needs``), when rules change (``enforcer``).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from garrison.bpf.loader import Program
from garrison.bpf.pinned import attach_pinned, pin_program
from garrison.minion.enforcers.bpf_lsm.needs import LASTING, OPTIONAL
from garrison.minion.enforcers.bpf_lsm.objects import attachable_names, cgroup_of

__all__ = ["Links"]

_READY: Final = "ready"

_log = logging.getLogger(__name__)


class Links:
    """The programs of one version, pinned, and which of them are attached.

    Args:
        folder: The version's, on a bpffs.
    """

    def __init__(self, folder: Path) -> None:
        self._links, self._programs = folder / "links", folder / "programs"
        self._active = self._kept = frozenset[str]()

    def install(self, programs: Iterable[Program]) -> None:
        """Pin all programs, and attach those that are always needed.

        Raises:
            KernelError: The kernel refused.
        """
        self._programs.mkdir(mode=0o700, parents=True)
        for program in programs:
            pin_program(program, self._programs / program.name)
        self.attach(frozenset())

    def is_complete(self) -> bool:
        """Tell whether an installation came to its end, and all its programs are there to be attached."""
        return self.is_ready() and attachable_names() <= _names_in(self._programs)

    def is_ready(self) -> bool:
        """Tell whether an installation came to its end."""
        return (self._links / _READY).is_dir()

    def take_over(self) -> None:
        """Take what is attached for what the rules in the kernel need."""
        self._active, self._kept = _names_in(self._links) & OPTIONAL, frozenset()

    def attach(self, needed: frozenset[str]) -> None:
        """Attach what rules need that are to hold next, and what is missing of the rest.

        Raises:
            KernelError: The kernel refused; what was attached before is.
            BackendUnsupportedError: There is no cgroup v2.
        """
        self._links.mkdir(mode=0o700, exist_ok=True)
        try:
            for name in sorted((self._wanted() | needed) - _names_in(self._links)):
                attach_pinned(self._programs / name, self._links / name, cgroup=cgroup_of(name))
        except BaseException:
            self.trim()
            raise
        (self._links / _READY).mkdir(exist_ok=True)

    def switched(self, needed: frozenset[str]) -> None:
        """Rules hold now that need these."""
        self._active = needed

    def hold(self) -> None:
        """From now on keep what is attached for the present rules."""
        self._kept = self._active

    def go_back(self) -> None:
        """The rules that were kept hold again."""
        self._active, self._kept = self._kept, frozenset()

    def keep(self) -> None:
        """The rules that were kept do so no more."""
        self._kept = frozenset()

    def trim(self) -> None:
        """Take away what neither the rules that hold now nor those that are kept need. Takes seconds where all CPUs are busy."""
        for name in (_names_in(self._links) & OPTIONAL) - self._active - self._kept - LASTING:
            try:
                (self._links / name).unlink()
            except OSError as err:
                _log.warning("program=%s attached=still error=%s", name, err)

    def trouble(self) -> str:
        """Say which pins somebody took away; empty when all are there."""
        linked, programs = self._wanted() | {_READY}, attachable_names()
        gone = len(linked - _names_in(self._links)) + len(programs - _names_in(self._programs))
        if not gone:
            return ""
        every = len(linked) + len(programs)
        return f"somebody took {gone} of {every} pins away: not everything is enforced until the agent is restarted"

    def _wanted(self) -> frozenset[str]:
        return (attachable_names() - OPTIONAL) | self._active | self._kept


def _names_in(folder: Path) -> frozenset[str]:
    return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()
