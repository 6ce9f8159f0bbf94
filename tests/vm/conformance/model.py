"""What a conformance case is: policies, who plays what under them, and what must come of it. Pure.

Rules of this file:
- A step ends in exactly one way: ``ok``, the name of an error, or of a signal. Refused by something else is another end.
- A step causes exactly the alerts that it lists, in that order; none listed means none.
- What an alert says (severity, message, tags) is written in the case as its policy's author wrote it in the policy.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["DATA", "HOST", "Alert", "Case", "Grade", "Place", "Step", "by_runtime", "kept_out", "passes", "refused", "told"]

DATA = Path(__file__).resolve().parents[2] / "data"
RUNTIME = "/usr/bin/python3.11"  # what starts the programs of a step


@dataclass(frozen=True)
class Grade:
    """What an alert says of its rule."""

    severity: int = 1
    message: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Alert:
    """One alert that a step causes.

    Attributes:
        object: What it is about.
        rule: The target of the rule that decides, as the policy writes it; the object when not given.
        by: The program that acted; the step's program when not given, and who started it for an exec.
        operation: What was tried.
        verdict: ``block`` or ``audit``.
        posture: No rule decided but the default posture; ``rule`` is then an allow rule of that entity, or anything.
        result: What the process got, if it is neither ``EPERM`` nor ``passed``.
        grade: What it says, if not what the case says.
        policy: Name of the policy, if the case has several.
    """

    object: str
    rule: str = ""
    by: str = ""
    operation: str = "open"
    verdict: str = "block"
    posture: bool = False
    result: str = ""
    grade: Grade | None = None
    policy: str = ""


@dataclass(frozen=True)
class Step:
    """One thing that is tried.

    Attributes:
        run: Command line, without a shell; the program is looked up as a shell would.
        end: ``ok``, an error's name, a signal's name.
        alerts: What it causes.
        user: Who tries.
        tty: With a controlling terminal.
        cwd: Where.
        runtime: ``run`` is an act of the process that starts programs (stage.py has them), not a program.
        starts: Only whether the program starts counts, not what it then says.
        makes: Files to make first.
        elsewhere: In another workload than the policy's.
    """

    run: str
    end: str = "ok"
    alerts: tuple[Alert, ...] = ()
    user: str = "root"
    tty: bool = False
    cwd: str = "/"
    runtime: bool = False
    starts: bool = False
    makes: tuple[str, ...] = ()
    elsewhere: bool = False

    @property
    def text(self) -> str:
        """It, for people."""
        who = "" if self.user == "root" else f"{self.user}: "
        return f"{who}{'(runtime) ' if self.runtime else ''}{self.run}{' (tty)' if self.tty else ''}"


@dataclass(frozen=True)
class Place:
    """Where the steps of a case are played.

    Attributes:
        labels: Of the workload; empty for the host itself.
        namespace: Of the workload.
        others: Labels of the other workload.
    """

    labels: tuple[str, ...] = ()
    namespace: str = ""
    others: tuple[str, ...] = ("container=other",)

    @property
    def is_host(self) -> bool:
        """No workload."""
        return not self.labels


HOST = Place()


@dataclass(frozen=True)
class Case:
    """Policies and what they must do.

    Attributes:
        name: Unique.
        files: Below ``tests/data``; all held at once.
        steps: Played one after the other.
        grade: What alerts say.
        place: Where.
        behaviours: Numbers of the published behaviours that it is.
        posture: Of the node.
        status: Report status by rule target, where it is neither ``enforced`` (blocks, allows) nor ``audited`` (audits).
        noise: Objects whose alerts by posture are left out: what loading a program touches and the policy does not list.
        not_held: Why the policy is not enforced; its steps then show that nothing happens.
    """

    name: str
    files: tuple[str, ...]
    steps: tuple[Step, ...]
    grade: Grade = Grade()
    place: Place = HOST
    behaviours: tuple[int, ...] = ()
    posture: str = "audit"
    status: dict[str, str] = field(default_factory=dict)
    noise: tuple[str, ...] = ()
    not_held: str = ""


def passes(run: str, **more: object) -> Step:
    """Return a step that works and that nobody is told of."""
    return Step(run, **more)  # type: ignore[arg-type]


def refused(run: str, *alerts: Alert | str, **more: object) -> Step:
    """Return a step that is refused, with its alerts; a string is a file that may not be opened."""
    return Step(run, "EPERM", tuple(Alert(a) if isinstance(a, str) else a for a in alerts), **more)  # type: ignore[arg-type]


def told(run: str, *alerts: Alert, **more: object) -> Step:
    """Return a step that works and is told."""
    return Step(run, "ok", alerts, **more)  # type: ignore[arg-type]


def kept_out(program: str, rule: str = "", *, by: str = "", **more: object) -> Alert:
    """Return the alert of a program that may not start, caller ``by``."""
    return Alert(program, rule, by or RUNTIME, "exec", **more)  # type: ignore[arg-type]


def by_runtime(run: str, end: str, *alerts: Alert) -> Step:
    """Return an act of whoever starts programs."""
    return Step(run, end, alerts, runtime=True)
