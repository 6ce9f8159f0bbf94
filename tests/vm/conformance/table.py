"""The page of results, docs/conformance.md: made from the cases, and from what a run on each kernel came to.

``render`` makes the page, ``read_results`` finds the results in it again: a page that still is what ``render`` makes of its own
results agrees with the cases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from garrison.common.policy.load import Foreign, load_text
from vm.conformance.cases import CASES
from vm.conformance.model import DATA, Alert, Case, Step
from vm.conformance.player import BACKENDS, rules_of

__all__ = ["BEHAVIOURS", "CASES", "KERNELS", "PAGE", "Results", "foreign_files", "read_results", "render", "wanted"]

PAGE = DATA.parents[1] / "docs" / "conformance.md"
KERNELS = ("6.1", "6.12")
BEHAVIOURS = 37
HELD, NOT_HELD = "held", "not held"
Results = Mapping[tuple[str, str], str]  # kernel, case -> HELD, NOT_HELD or ``failed``
_FOLDERS = {
    "host-scenarios": "host scenarios",
    "host-policies": "host policies",
    "container-policies": "container policies",
    "templates-5gsec": "5G templates",
    "behaviours": "written anew",
}
_ROW = re.compile(r"^\| (?P<name>[\w-]+)<br>.* \| (?P<first>[\w ]+) \| (?P<second>[\w ]+) \| [^|]* \|$", re.MULTILINE)
_HEAD = """# Conformance

Published KubeArmor policies, enforced in a VM on Debian's kernels 6.1 and 6.12. This page is made by `./dev vm-test
tests/vm/conformance --write-table` from the cases and from what came of them; `./dev check` compares it with the cases.

A case *held* when on that kernel every stimulus ended as its row says, every alert came with the right rule, policy,
severity, tags, message, verdict, result and actor, no other alert came (each stimulus is followed by an event that is always
told), and the compile report said the right thing of every rule. *Not held*: nothing enforces the policy, and the report says
so (`impossible`, with a reason).

- The documents are in `tests/data/conformance` (from kubearmor/KubeArmor and kubearmor/policy-templates) and, written after
  the descriptions of KubeArmor's own tests, in `tests/data/behaviours`. Numbers in brackets are those of the behaviours.
- Policies for workloads are played in a cgroup with a root of its own: an overlay, entered by `pivot_root`, as containers
  have it.
- `(runtime)` is what starts a container's programs; `user1:` acts as that user; `(tty)` has a controlling terminal.
  `/readwrite`, `curl`, `route` and the programs of the 5G templates are one small program under their names
  (`tests/vm/conformance/probe.c`).
- `refused` is EPERM, `told` an audit. `posture` means that an allow-list does not name it; the node's posture is then
  `block`.
"""


def wanted(case: Case) -> str:
    """Return what a run that did not fail makes of a case."""
    return NOT_HELD if case.not_held else HELD


def foreign_files() -> Iterator[str]:
    """Yield documents of other API groups, which garrison skips."""
    for file in sorted((DATA / "conformance").rglob("*.yaml")):
        if all(isinstance(document, Foreign) for document in load_text(file.read_text())):
            yield str(file.relative_to(DATA))


def render(results: Results) -> str:
    """Return the page."""
    rows = (_row(case, results) for case in CASES)
    skipped = "\n".join(f"- `{file}`" for file in foreign_files())
    return "\n".join(
        [
            _HEAD,
            "## Sums\n",
            *_sums(results),
            "\n## Cases\n",
            f"| case, documents | rules | stimulus → expected | {' | '.join(KERNELS)} | held by, or why not |",
            f"|---|---|---|{'---|' * len(KERNELS)}---|",
            *rows,
            "\n## Skipped\n",
            "Documents of other API groups (Kyverno, Kubernetes' own) are read, named in the report's notes, and not enforced:\n",
            skipped,
            "",
        ]
    )


def read_results(page: str) -> Results:
    """Return the results that a page holds."""
    return {
        (kernel, row["name"]): row[group]
        for row in _ROW.finditer(page)
        for kernel, group in zip(KERNELS, ("first", "second"), strict=True)
    }


def _sums(results: Results) -> Iterator[str]:
    yield f"| documents | cases | stimuli | refused | told | pass unseen | {' | '.join(f'held on {k}' for k in KERNELS)} |"
    yield f"|---|---|---|---|---|---|{'---|' * len(KERNELS)}"
    for folder, text in _FOLDERS.items():
        yield _sum(text, [case for case in CASES if f"{folder}/" in case.files[0]], results)
    yield _sum("all", CASES, results)


def _sum(text: str, cases: Iterable[Case], results: Results) -> str:
    cases = list(cases)
    steps = Counter(_kind(step) for case in cases for step in case.steps)
    held = [sum(results.get((kernel, case.name)) == HELD for case in cases) for kernel in KERNELS]
    figures = [
        len(cases),
        steps.total(),
        steps["refused"],
        steps["told"],
        steps["passes"],
        *(f"{n} of {len(cases)}" for n in held),
    ]
    return f"| {text} | {' | '.join(map(str, figures))} |"


def _kind(step: Step) -> str:
    return "refused" if step.end != "ok" else "told" if step.alerts else "passes"


def _row(case: Case, results: Results) -> str:
    files = "<br>".join(file.rpartition("/")[2].removesuffix(".yaml") for file in case.files)
    numbers = "".join(f" [{number}]" for number in case.behaviours)
    steps = "<br>".join(f"`{step.text.replace('|', chr(92) + '|')}` → {_expected(step)}" for step in case.steps)
    told = [results.get((kernel, case.name), "not run") for kernel in KERNELS]
    return f"| {case.name}<br>{files}{numbers} | {len(rules_of(case))} | {steps} | {' | '.join(told)} | {_by(case)} |"


def _expected(step: Step) -> str:
    what = {"EPERM": "refused", "ok": "told" if step.alerts else "passes"}.get(step.end, step.end)
    details = dict.fromkeys(_alert(alert) for alert in step.alerts)
    elsewhere = ", in another workload" if step.elsewhere else ""
    return f"{what}{elsewhere}{': ' + ', '.join(details) if details else ''}"


def _alert(alert: Alert) -> str:
    return f"{alert.operation} {alert.object}{' (posture)' if alert.posture else ''}"


def _by(case: Case) -> str:
    if case.not_held:
        return case.not_held
    told = {BACKENDS.get(alert.operation, "bpf_lsm") for step in case.steps for alert in step.alerts}
    degraded = ", degraded" if "degraded" in case.status.values() else ""
    return ", ".join(sorted(told)) + degraded
