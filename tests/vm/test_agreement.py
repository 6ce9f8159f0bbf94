"""Every backend refuses, lets pass and tells what the policy language says: drawn rules, real opens and starts of programs.

Drawn are rules about files and programs (exact, directory, glob, name; sources, conditions, arguments, exemptions,
allow-lists, postures, modes) and what programs of several users, with and without a terminal, then do. ``match.decide`` says
what must come of it; the kernel enforcer and fanotify do it, each in a VM.

Rules name nothing outside of ``ROOT``, and allow-lists are for programs there: else the VM itself would be locked out, or told
of.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from garrison.common.policy.match import Decision, Operation, decide
from garrison.common.policy.rules import Entity, Mode, PathKind, PathTarget, Posture, Postures, Rule, RuleSet, Source, Verdict
from vm.lab import K61, K612, Background, Lab, Machine, Vm

pytestmark = pytest.mark.long

ROOT = "/agree"
PROGRAMS = [f"{ROOT}/a", f"{ROOT}/d/b", f"{ROOT}/d/e/c"]  # they act
STARTED = [f"{ROOT}/x", f"{ROOT}/d/x", f"{ROOT}/d/e/y"]  # and start these
FILES = {
    f"{ROOT}/f": "root",
    f"{ROOT}/d/f": "alice",
    f"{ROOT}/d/g": "root",
    f"{ROOT}/d/e/f": "root",
    f"{ROOT}/d/e/é [x]": "alice",
}
OWNERS = {**FILES, **dict.fromkeys(PROGRAMS, "root"), f"{ROOT}/x": "root", f"{ROOT}/d/x": "alice", f"{ROOT}/d/e/y": "root"}
DIRECTORIES = [f"{ROOT}/", f"{ROOT}/d/", f"{ROOT}/d/e/", f"{ROOT}/none/"]
GLOBS = [
    f"{ROOT}/*", f"{ROOT}/**", f"{ROOT}/**/f", f"{ROOT}/d/**", f"{ROOT}/?", f"{ROOT}/d/[ex]*/[!f]*", f"{ROOT}/{{d,none}}/{{x,f}}",
    f"{ROOT}/*/x", f"{ROOT}/**/é*", f"{ROOT}/d/e/é \\[x\\]",
]  # fmt: skip
ACTORS = [(program, user, tty) for program in PROGRAMS for user in ("root", "alice") for tty in (False, True)]
LISTED = ("-a",)  # one list for all rules: of two that name one path the kernel enforcer keeps none
ARGUMENTS = [(), ("-a",), ("-a", "-a"), ("-a", "-b"), ("-c",)]
Told = tuple[str, str, str, str]
"""Operation, object, verdict, rule."""
BACKENDS = ("bpf_lsm", "fanotify")
_PROGRAM, _HOLDER, _SOCKET = "/opt/test/agreement", "/opt/test/agreement_holder.py", "/run/agreement"

targets = st.one_of(
    st.sampled_from(sorted(OWNERS)).map(lambda where: PathTarget(PathKind.EXACT, where)),
    st.builds(PathTarget, st.just(PathKind.DIRECTORY), st.sampled_from(DIRECTORIES), st.booleans()),
    st.sampled_from(GLOBS).map(lambda pattern: PathTarget(PathKind.GLOB, pattern)),
)
names = st.sampled_from(["x", "y", "none"]).map(lambda name: PathTarget(PathKind.NAME, name))
sources = st.one_of(st.sampled_from(PROGRAMS).map(Source), st.builds(Source, st.sampled_from(DIRECTORIES), st.booleans()))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    entity = draw(st.sampled_from([Entity.PROCESS, Entity.FILE]))
    verdict = draw(st.sampled_from(list(Verdict)))
    exempts = verdict is Verdict.ALLOW and draw(st.booleans())
    lists = verdict is Verdict.ALLOW and not exempts
    policy = draw(st.sampled_from(["p", "q"]))
    return Rule(
        id=f"{policy}/{draw(st.integers(0, 999)):03}",
        policy=policy,
        entity=entity,
        verdict=verdict,
        target=draw(st.one_of(targets, names) if entity is Entity.PROCESS else targets),
        sources=tuple(draw(st.lists(sources, min_size=int(lists), max_size=2, unique=True))),
        owner_only=draw(st.booleans()),
        read_only=entity is Entity.FILE and draw(st.booleans()),
        no_tty=draw(st.booleans()),
        allowed_args=draw(st.none() | st.just(LISTED)) if entity is Entity.PROCESS else None,
        mode=draw(st.sampled_from([Mode.ENFORCE, Mode.ENFORCE, Mode.AUDIT])),
        exempts=exempts,
    )


@st.composite
def rule_sets(draw: st.DrawFn) -> RuleSet:
    posture = draw(st.sampled_from(list(Posture)))
    drawn = draw(st.lists(rules(), min_size=1, max_size=8, unique_by=lambda rule: rule.id))
    return RuleSet(rules=tuple(sorted(drawn, key=lambda rule: rule.id)), postures=Postures(file=posture))


@st.composite
def acts(draw: st.DrawFn) -> tuple[int, str]:
    """An actor, and what it does, as agreement.c reads it."""
    actor = draw(st.integers(0, len(ACTORS) - 1))
    match draw(st.sampled_from("rwx")):
        case "r":
            return actor, f"r {draw(st.sampled_from(sorted(OWNERS)))}"
        case "w":
            return actor, f"w {draw(st.sampled_from(sorted(FILES)))}"
        case _:
            return actor, " ".join(["x", draw(st.sampled_from(STARTED)), *draw(st.sampled_from(ARGUMENTS))])


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def vms(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Vm]]:
    """By enforcer, a VM with programs that act; it holds no rules yet."""
    machine: Machine = request.param
    built: Path = tmp_path_factory.mktemp("agreement") / "agreement"
    source = Path(__file__).with_name("agreement.c")
    subprocess.run(["gcc", "-O1", "-static", "-no-pie", "-Wall", str(source), "-o", str(built)], check=True)
    with Lab() as lab:
        yield {
            backend: _holding(lab.boot(backend.replace("_", "-"), machine), backend, built.read_bytes()) for backend in BACKENDS
        }


def _holding(vm: Vm, backend: str, program: bytes) -> Vm:
    vm.put(_HOLDER, Path(__file__).with_name("agreement_holder.py").read_bytes())
    vm.put(_PROGRAM, program, mode=0o755)
    vm.check("sh", "-c", f"mkdir -p {ROOT} && mount -t tmpfs agree {ROOT}")
    for path, owner in OWNERS.items():
        vm.put(path, "content\n" if path in FILES else program, mode=0o666 if path in FILES else 0o755)
        vm.check("chown", owner, path)
    holder = vm.start("python3", _HOLDER, _SOCKET, backend, json.dumps(ACTORS), log="/run/agreement.log")
    vm.until(lambda: _listens(vm, holder), f"{backend} without rules", 200)
    return vm


def _listens(vm: Vm, holder: Background) -> bool:
    assert holder.running(), holder.output()
    return vm.run("test", "-S", _SOCKET).returncode == 0


@settings(
    max_examples=120,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    print_blob=True,
)
@given(drawn=rule_sets(), operations=st.lists(acts(), min_size=1, max_size=12))
def test_backends_do_what_the_rules_mean(vms: dict[str, Vm], drawn: RuleSet, operations: list[tuple[int, str]]) -> None:
    request = json.dumps({"rules": msgspec.to_builtins(drawn), "operations": operations})

    for backend, vm in vms.items():
        done = json.loads(vm.check(_PROGRAM, "ask", _SOCKET, stdin=request, timeout_s=120))
        assert "error" not in done, done
        for (actor, act), result, told in zip(operations, done["results"], done["told"], strict=True):
            came = _refused(result), [tuple(each) for each in told]
            assert came == _expected(drawn, ACTORS[actor], act, backend), _repro(drawn, backend, ACTORS[actor], act, result)


def _refused(result: str) -> bool:
    assert result in {"OK", "1", "killed 9"}, result
    return result != "OK"


def _expected(
    rules: RuleSet, actor: tuple[str, str, bool], act: str, backend: str
) -> tuple[bool, list[tuple[str, str, str, str]]]:
    """Return whether ``act`` is refused, and what is told of it: (operation, object, verdict, rule)."""
    program, user, tty = actor
    if act.startswith("x"):
        path, *args = act[2:].split(" ")
    else:
        path, args = act[2:], []
    about = Operation(entity=Entity.FILE, path=path, source=program, is_owner=OWNERS[path] == user, tty=tty)
    file = decide(rules, msgspec.structs.replace(about, write=act.startswith("w")))
    steps: list[tuple[str, Decision]] = [("open", file)]
    if act.startswith("x"):
        start = msgspec.structs.replace(about, entity=Entity.PROCESS, args=tuple(args))
        decision, listed = decide(rules, start), decide(rules, msgspec.structs.replace(start, args=LISTED))
        # Refused whatever its arguments are: by then the kernel enforcer does not know them.
        steps.append(("exec", listed if backend == "bpf_lsm" and listed.verdict is Verdict.BLOCK else decision))
    if backend == "fanotify":
        steps.reverse()  # it is asked about the start before the open; the LSM hooks come in the other order
    told = []
    for operation, decision in steps:
        if decision.verdict is not Verdict.ALLOW:
            told.append((operation, path, decision.verdict.value, decision.rule.id if decision.rule else ""))
        if decision.verdict is Verdict.BLOCK:
            return True, told
    return False, told


def _repro(rules: RuleSet, backend: str, actor: tuple[str, str, bool], act: str, result: str) -> str:
    """Say what is needed to see it again, one rule a line."""
    lines = [f"{backend}: {actor} {act!r} came to {result}", f"postures: {rules.postures}"]
    return "\n".join([*lines, *(msgspec.json.encode(rule).decode() for rule in rules.rules)])
