"""Published templates for 5G cores: stimuli made from their own rules, what must come of them said by ``match.decide``.

Of each rule that lists programs, they start. Of each that refuses files, one is tried by the runtime and by the programs that
the policy exempts. Of each program with a list of protocols, each is tried, and one that is on no list. ``MAIN`` says by hand
what each document is about, so that the oracle is not the only judge (tests/unit/policy/test_conformance_table.py).
"""

from __future__ import annotations

from collections.abc import Iterator

from garrison.common.policy.expand import expand
from garrison.common.policy.load import Policy, load_text
from garrison.common.policy.match import Operation, decide
from garrison.common.policy.protocols import socket_names
from garrison.common.policy.rules import (
    Entity,
    PathKind,
    PathTarget,
    Posture,
    Postures,
    Rule,
    RuleSet,
    Verdict,
    WorkloadScope,
)
from garrison.minion.enforcers.resolve import resolve
from vm.conformance.model import DATA, RUNTIME, Alert, Case, Grade, Place, Step
from vm.conformance.world import File

__all__ = ["FILES_5G", "FIVE_G", "FOLDER", "MAIN"]

FOLDER = "conformance/templates-5gsec"
_STRICT = Postures(file=Posture.BLOCK, network=Posture.BLOCK, capability=Posture.BLOCK)
_UNLISTED = "/opt/conform/unlisted"
# Programs of the templates that the lab's image has, and links on it.
_IN_USR_BIN = ("dash", "dirname", "dpkg", "gpgv", "mktemp", "perl", "sh")
_DEBIAN = ("/bin/", "/usr/lib/apt/", "/usr/sbin/usermod", *(f"/usr/bin/{name}" for name in _IN_USR_BIN))
_LINKS = {"/usr/bin/sh": "/usr/bin/dash"}
_MERGED = ("/bin/", "/sbin/", "/lib/")
_IN_DIRECTORY = {"/usr/bin/": "true", "/usr/sbin/": "route", "/bin/": "true", "/sbin/": "route"}
_INET, _STREAM, _DGRAM, _RAW = 2, 1, 2, 3
# Act of probe.c -> type and protocol of its socket; operation and object of its alert.
_SOCKETS = {
    "tcp": (_STREAM, 0, "connect", "tcp://127.0.0.1:7000"),
    "udp": (_DGRAM, 0, "connect", "udp://127.0.0.1:7000"),
    "raw": (_RAW, 255, "socket", "raw://255"),
    "icmp": (_RAW, 1, "socket", "raw://icmp"),
    "sctp": (_STREAM, 132, "socket", "stream://sctp"),
}

_TOKEN = "/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
_TAKEN = Grade(1, "unauthorized access to kubernetes service account")
_OPEN5GS = Grade(10, "unauthorized access to open5GS data")
# Document -> file that only one program may read, that program, what the alert says.
MAIN: dict[str, tuple[str, str, Grade]] = {
    **{
        f"ksp-core-{name}-zero-trust": (f"/openair-{name}/etc/{name}.yaml", f"/openair-{name}/bin/oai_{name}", Grade())
        for name in ("amf", "ausf", "nrf", "smf", "udm", "udr", "upf")
    },
    "ksp-oran-cuup-zero-trust": (_TOKEN, "/opt/oai-gnb/bin/nr-cuup", _TAKEN),
    "ksp-oran-du-zero-trust": (_TOKEN, "/opt/oai-gnb/bin/nr-softmodem", _TAKEN),
    **{
        f"open5gs-{name.upper()}-ZeroTrust": ("/open5gs/conform.txt", f"/usr/bin/open5gs-{name}d", _OPEN5GS)
        for name in ("amf", "ausf", "bsf", "nrf", "nssf", "pcf", "smf", "udm", "udr", "upf")
    },
}


def _follow(path: str) -> str:
    """Return where ``path`` leads on a system whose /bin is /usr/bin."""
    merged = f"/usr{path}" if f"{path}/".startswith(_MERGED) else path
    return _LINKS.get(merged, merged)


class _Maker:
    """Makes the steps of one policy."""

    def __init__(self, policy: Policy) -> None:
        self.written = [located.rule for located in expand(policy)]
        scope = self.written[0].scope
        assert isinstance(scope, WorkloadScope)
        self.place = Place(scope.labels, scope.namespace)
        rules = RuleSet(rules=tuple(sorted(self.written, key=lambda r: r.id)), postures=_STRICT)
        self._rules = resolve(rules, _follow).rules

    def steps(self) -> Iterator[Step]:
        yield from self._programs()
        yield from self._files()
        yield from self._sockets()

    def files(self) -> Iterator[File]:
        for path in {*self._listed(), *self._sources()}:
            if not path.startswith(_DEBIAN):
                yield path, "program", "root", ""
        for path in self._refused():
            yield path, "text", "root", "data\n"
        yield _UNLISTED, "program", "root", ""

    # ---- programs --------------------------------------------------------------------------------------------------------
    def _listed(self) -> Iterator[str]:
        for rule in self.written:
            if rule.entity is Entity.PROCESS and isinstance(rule.target, PathTarget):
                in_it = _IN_DIRECTORY.get(rule.target.value, "")
                yield rule.target.value + in_it

    def _programs(self) -> Iterator[Step]:
        for path in (*self._listed(), _UNLISTED):
            operation = self._by(RUNTIME, Entity.PROCESS, path=_follow(path))
            told_of = Alert(_follow(path), by=RUNTIME, operation="exec")
            yield self._judged(Step(f"{path} --version", starts=True), operation, told_of)
        yield Step(_UNLISTED, elsewhere=True)

    # ---- files -----------------------------------------------------------------------------------------------------------
    def _refused(self) -> Iterator[str]:
        for rule in self.written:
            if rule.entity is Entity.FILE and rule.verdict is Verdict.BLOCK and isinstance(rule.target, PathTarget):
                where = rule.target.value
                yield (
                    where if rule.target.how is PathKind.EXACT else _TOKEN if _TOKEN.startswith(where) else f"{where}conform.txt"
                )

    def _files(self) -> Iterator[Step]:
        yield Step("read /etc/hostname", runtime=True)
        yield from (Step(f"read {path}", runtime=True, elsewhere=True) for path in dict.fromkeys(self._refused()))
        for path in self._refused():
            for act in ("read", "write"):
                for by in (RUNTIME, *self._sources()):
                    operation = self._by(by, Entity.FILE, path=path, write=act == "write", is_owner=True)
                    step = Step(f"{act} {path}", runtime=True) if by == RUNTIME else Step(f"{by} {act} {path}")
                    yield self._judged(step, operation, Alert(path, by=by))

    # ---- sockets ---------------------------------------------------------------------------------------------------------
    def _sources(self) -> list[str]:
        """Return the programs that rules are about and that the lab has a stand-in for."""
        found = {source.value for rule in self.written for source in rule.sources}
        return sorted(path for path in found if not path.startswith(_DEBIAN))

    def _sockets(self) -> Iterator[Step]:
        if not any(rule.entity is Entity.NETWORK for rule in self.written):
            return
        for act, (kind, number, operation, told_of) in _SOCKETS.items():
            for by in self._sources():
                wanted = self._by(by, Entity.NETWORK, protocols=socket_names(_INET, kind, number))
                yield self._judged(Step(f"{by} {act}"), wanted, Alert(told_of, by=by, operation=operation))
        yield Step("tcp", runtime=True)
        yield Step("raw", runtime=True)

    # ---- the oracle ------------------------------------------------------------------------------------------------------
    def _by(self, source: str, entity: Entity, **more: object) -> Operation:
        fields = {"labels": frozenset(self.place.labels), "namespace": self.place.namespace, "source": source}
        return Operation(entity=entity, **fields, **more)  # type: ignore[arg-type]

    def _judged(self, step: Step, operation: Operation, alert: Alert) -> Step:
        """Return ``step`` with what ``match.decide`` says of it."""
        decision = decide(self._rules, operation)
        if decision.verdict is Verdict.ALLOW or decision.rule is None:
            return step
        refused = decision.verdict is Verdict.BLOCK
        told = Alert(
            alert.object,
            "" if decision.by_posture else self._as_written(decision.rule),
            alert.by,
            alert.operation,
            decision.verdict.value,
            posture=decision.by_posture,
            grade=Grade(decision.rule.severity, decision.rule.message, decision.rule.tags),
        )
        ends = "EPERM" if refused else "ok"
        return Step(step.run, ends, (told,), runtime=step.runtime, starts=step.starts)

    def _as_written(self, rule: Rule) -> str:
        target = next(r.target for r in self.written if r.id == rule.id)
        assert isinstance(target, PathTarget), "only rules on paths refuse by name in these templates"
        return target.value


def _policies() -> Iterator[tuple[str, Policy]]:
    for file in sorted((DATA / FOLDER).glob("*.yaml")):
        for document in load_text(file.read_text(), file.name):
            if isinstance(document, Policy):
                yield file.stem, document


_MAKERS = {name: _Maker(policy) for name, policy in _policies()}
FIVE_G: tuple[Case, ...] = tuple(
    Case(f"5g-{name}", (f"{FOLDER}/{name}.yaml",), tuple(maker.steps()), place=maker.place, posture="block")
    for name, maker in _MAKERS.items()
)
FILES_5G: tuple[File, ...] = tuple(file for maker in _MAKERS.values() for file in maker.files())
