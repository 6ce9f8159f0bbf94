"""The node's workloads as one document, for people on the node: written by the agent, shown by ``garrison minion workloads``.

Rules of this file:
- The file is replaced atomically and is readable by root alone: labels may say more than everybody should know.
- It holds what each policy selects by, not what it selects: that is worked out by whoever reads it, with the language's own
  function.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from garrison.common.errors import ConfigError
from garrison.common.policy.match import scope_matches
from garrison.common.policy.rules import RuleSet, WorkloadScope
from garrison.common.status_file import read_status_file, replace_status_file
from garrison.minion.workloads.model import Workload

__all__ = ["REPORT_FILE", "PolicyScope", "WorkloadReport", "read_report", "scopes_of", "selecting", "write_report"]

REPORT_FILE: Final = "workloads.json"


class PolicyScope(msgspec.Struct, frozen=True):
    """For whom a policy is; a policy may have several lines."""

    policy: str
    scope: WorkloadScope


class WorkloadReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent knows of workloads.

    Attributes:
        workloads: All of them.
        scopes: For whom the policies that are held are, those for workloads.
    """

    workloads: tuple[Workload, ...] = ()
    scopes: tuple[PolicyScope, ...] = ()


def scopes_of(rules: RuleSet) -> tuple[PolicyScope, ...]:
    """Return for whom the policies in ``rules`` are, without those for the whole node."""
    found = {PolicyScope(rule.policy, rule.scope) for rule in rules.rules if isinstance(rule.scope, WorkloadScope)}
    return tuple(sorted(found, key=lambda line: (line.policy, msgspec.json.encode(line.scope))))


def selecting(workload: Workload, scopes: Iterable[PolicyScope]) -> tuple[str, ...]:
    """Return the names of the policies that select ``workload``."""
    return tuple(sorted({line.policy for line in scopes if scope_matches(line.scope, workload.labels, workload.namespace)}))


def write_report(runtime_dir: Path, report: WorkloadReport) -> None:
    """Replace the file; see ``replace_status_file``."""
    replace_status_file(runtime_dir / REPORT_FILE, report)


def read_report(runtime_dir: Path) -> WorkloadReport:
    """Return the last report.

    Raises:
        ConfigError: No agent has written one here, or it cannot be read.
    """
    absent = ConfigError(f"no minion has run with {runtime_dir}", hint="start it: systemctl start garrison-minion")
    return read_status_file(runtime_dir / REPORT_FILE, WorkloadReport, absent=absent, hint="run this as root on the node")
