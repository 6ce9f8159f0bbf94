"""Plays cases in a VM and compares what came of them with what they say.

Rules of this file:
- Everything is compared: how each step ended, every alert in its order, the report line of every rule.
- What did not fit is returned as lines for people; none means the case held.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec

from garrison.common.events import Event, Kind, Lane
from garrison.common.policy.expand import expand
from garrison.common.policy.load import Policy, load_text
from garrison.common.policy.rules import PathTarget, Protocol, Rule, Verdict
from vm.conformance.model import DATA, RUNTIME, Alert, Case, Step
from vm.conformance.world import File
from vm.lab import Vm

__all__ = ["BACKENDS", "NODE", "Player", "build_probe", "policies_of", "program_of", "rules_of", "target_text"]

NODE = "kubearmor-dev-next"
_HERE = Path(__file__).parent
_GUEST = "/opt/conform"
_SOCKET = "/run/conform/play.sock"
_PROBE = "/run/conform/probe"
_PLAY_S = 240.0  # a busy machine and an emulated CPU; a case takes a second or two
_REFUSED = "Operation not permitted"
BACKENDS = {"syscall": "syscalls", "egress": "nftables"}  # of operations that the kernel enforcer does not tell
_UIDS = {"root": 0, "user1": 1234}
_MERGED = ("/bin/", "/sbin/", "/lib/")  # lead to /usr on the lab's image, as on every Debian 12


def policies_of(case: Case) -> tuple[Policy, ...]:
    """Return the policies of a case."""
    documents = (d for file in case.files for d in load_text((DATA / file).read_text(), file))
    return tuple(d for d in documents if isinstance(d, Policy))


def rules_of(case: Case) -> tuple[Rule, ...]:
    """Return the rules of a case, in the order of its documents."""
    return tuple(located.rule for policy in policies_of(case) for located in expand(policy))


class Player:
    """The programs in ``vm`` that hold policies and play steps.

    Args:
        vm: Where.
        probe: ``probe.c``, built.
        files: What stimuli find.
    """

    def __init__(self, vm: Vm, probe: bytes, files: Sequence[File]) -> None:
        self._vm = vm
        for name in ("play.py", "stage.py"):
            vm.put(f"{_GUEST}/{name}", (_HERE / name).read_bytes())
        vm.put(_PROBE, probe, mode=0o755)
        self._log = vm.start("python3", f"{_GUEST}/play.py", _SOCKET, log="/run/conform/log")
        vm.until(lambda: vm.run("test", "-S", _SOCKET).returncode == 0 or not self._log.running(), "the player", 120)
        probes = self._ask({"do": "begin", "files": files})
        assert all(reason is True for reason in probes.values()), probes

    def faults(self, case: Case) -> list[str]:
        """Play a case; returns what was not as it says."""
        played = self._ask(
            {
                "do": "play",
                "documents": [(DATA / file).read_text() for file in case.files],
                "node": NODE,
                "posture": case.posture,
                "labels": case.place.labels,
                "namespace": case.place.namespace,
                "others": case.place.others,
                "steps": [asdict(step) | {"place": _place(case, step)} for step in case.steps],
            }
        )
        faults = list(_report_faults(case, played["report"]))
        for step, result, told in zip(case.steps, played["results"], played["events"], strict=True):
            events = [msgspec.convert(event, Event) for event in told]
            faults += [f"{step.text}: {fault}" for fault in _step_faults(case, step, result, events)]
        return faults

    def _ask(self, what: dict[str, Any]) -> Any:
        raw = self._vm.run(_PROBE, "ask", _SOCKET, stdin=json.dumps(what) + "\n", timeout_s=_PLAY_S)
        answer = json.loads(raw.stdout) if raw.stdout else {"error": raw.stderr}
        if "error" in answer:
            raise AssertionError(f"{answer['error']}\n{self._log.output()}")
        return answer["done"]


def _place(case: Case, step: Step) -> str:
    return "host" if case.place.is_host else "bystander" if step.elsewhere else "subject"


# ---- the report ------------------------------------------------------------------------------------------------------
def _report_faults(case: Case, report: Sequence[dict[str, str]]) -> Iterator[str]:
    lines = {line["rule"]: line for line in report if not line["rule"].startswith("sentinel")}
    rules = {rule.id: rule for rule in rules_of(case)}
    if lines.keys() != rules.keys():
        yield f"the report speaks of {sorted(lines)}, the rules are {sorted(rules)}"
        return
    for rule in rules.values():
        line = lines[rule.id]
        wanted = case.status.get(target_text(rule), "audited" if rule.verdict is Verdict.AUDIT else "enforced")
        if line["status"] != wanted:
            yield f"{rule.id} {target_text(rule)} is {line['status']}, not {wanted}: {line.get('reason', '')}"
        elif wanted in {"degraded", "impossible", "inert"} and not line.get("reason"):
            yield f"{rule.id} is {wanted} and does not say why"


def target_text(rule: Rule) -> str:
    """Return a rule's target as its policy writes it."""
    match rule.target:
        case PathTarget(value=value):
            return value
        case Protocol(name):
            return name
        case other:
            return other.value


# ---- one step ----------------------------------------------------------------------------------------------------------
def _step_faults(case: Case, step: Step, result: dict[str, Any], events: Iterable[Event]) -> Iterator[str]:
    ended = _end(step, result)
    if ended != step.end:
        yield f"ended with {ended}, not {step.end}: {result}"
    found = [e for e in events if not (e.data.get("by_posture") and e.object in case.noise)]
    if len(found) != len(step.alerts):
        yield f"caused {[_text(e) for e in found]}, not {[f'{a.operation} {a.object} {a.verdict}' for a in step.alerts]}"
        return
    for event, alert in zip(found, step.alerts, strict=True):
        yield from _alert_faults(case, step, alert, event)


def _end(step: Step, result: dict[str, Any]) -> str:
    if result["error"]:
        return str(result["error"])
    code = result["code"]
    if code == -9:
        return "SIGKILL"
    if code == 0 or step.starts:
        return "ok"
    return "EPERM" if _REFUSED in result["output"] else f"exit code {code}"


def _alert_faults(case: Case, step: Step, alert: Alert, event: Event) -> Iterator[str]:
    passed = alert.verdict == "audit"
    of_packet = alert.operation == "egress"  # packets are nobody's
    grade = alert.grade or case.grade
    wanted = {
        "object": alert.object,
        "operation": alert.operation,
        "verdict": alert.verdict,
        "result": alert.result or ("passed" if passed else "dropped" if of_packet else "EPERM"),
        "by": "" if of_packet else alert.by or program_of(step),
        "uid": -1 if of_packet else _UIDS[step.user],
        "tty": step.tty,
        "posture": alert.posture,
        "severity": grade.severity,
        "message": grade.message,
        "tags": list(grade.tags),
        "kind": (Kind.ALERT, Lane.ALERT),
        "backend": BACKENDS.get(alert.operation, "bpf_lsm"),
    }
    actor = event.actor
    got = {
        "object": event.object,
        "operation": event.operation,
        "verdict": event.verdict,
        "result": event.result,
        "by": actor.exe if actor else "",
        "uid": actor.uid if actor else -1,
        "tty": bool(actor and actor.tty),
        "posture": bool(event.data.get("by_posture")),
        "severity": event.severity,
        "message": event.data.get("message", ""),
        "tags": event.data.get("tags", []),
        "kind": (event.kind, event.lane),
        "backend": event.backend,
    }
    yield from (f"{alert.object}: {name} is {got[name]!r}, not {wanted[name]!r}" for name in wanted if got[name] != wanted[name])
    if not of_packet and (not actor or actor.pid <= 0):
        yield f"{alert.object}: no process is named"
    ids = [rule.id for rule in _rules_meant(case, alert)]
    if event.rule not in ids or event.policy != event.rule.partition("/")[0]:
        yield f"{alert.object}: rule is {event.rule} of {event.policy}, not of {ids}"


def _rules_meant(case: Case, alert: Alert) -> list[Rule]:
    """Return the rules that the alert may name: one, unless a posture decided."""
    rules = [rule for rule in rules_of(case) if alert.policy in {"", rule.policy}]
    if alert.posture:
        lists = [rule for rule in rules if rule.verdict is Verdict.ALLOW and not rule.exempts]
        return [rule for rule in lists if alert.rule in {"", target_text(rule)}]
    return [rule for rule in rules if rule.verdict is not Verdict.ALLOW and target_text(rule) == (alert.rule or alert.object)]


def program_of(step: Step) -> str:
    """Return the program that a step runs, as the kernel names it."""
    if step.runtime:
        return RUNTIME
    name = shlex.split(step.run)[0]
    if "/" not in name:
        return f"/usr/bin/{name}"
    return f"/usr{name}" if name.startswith(_MERGED) else name


def _text(event: Event) -> str:
    return f"{event.operation} {event.object} {event.verdict} by {event.actor.exe if event.actor else '?'} ({event.rule})"


def build_probe(folder: Path) -> bytes:
    """Return ``probe.c``, built in ``folder``."""
    built = folder / "probe"
    subprocess.run(["gcc", "-O1", "-static", "-s", str(_HERE / "probe.c"), "-o", str(built)], check=True)
    return built.read_bytes()
