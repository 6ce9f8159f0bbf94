"""Fixtures for tests in VMs. A test that fails leaves its VMs' folders behind and shows the ends of their consoles."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm.bypass.table import KERNELS, NOT_RUN, Row, marks, read, render
from vm.lab import Lab

_HERE = Path(__file__).parent
_failed = pytest.StashKey[bool]()


class BypassTable:
    """Writes what a run found about known tricks."""

    def __init__(self, page: Path) -> None:
        self._page = page
        self._found: dict[tuple[str, str], list[str]] = defaultdict(list)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note what became of a test, by kernel."""
        if report.when == "call" or report.failed:
            path, _, rest = report.nodeid.partition("::")
            name, kernel = rest.partition("[")[0], _kernel_of(report.nodeid)
            test = f"{Path(path).resolve().relative_to(_HERE)}::{name}"
            self._found[test, kernel].append(report.outcome)

    def pytest_sessionfinish(self) -> None:
        """Write the page."""
        before = read(self._page.read_text()) if self._page.exists() else []
        self._page.write_text(render([self._with_found(row) for row in marks(_HERE)], before))

    def _with_found(self, row: Row) -> Row:
        outcomes = [self._found.get((row.test, kernel), []) for kernel in KERNELS]
        return row._replace(
            found=tuple(NOT_RUN if not seen else "holds" if set(seen) == {"passed"} else "FAILS" for seen in outcomes)
        )


def _kernel_of(nodeid: str) -> str:
    """Return the kernel that a test's parameters name; empty for none."""
    return next((kernel for kernel in KERNELS if kernel in nodeid.partition("[")[2].rstrip("]").split("-")), "")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the page to write, and the kernel to run on."""
    parser.addoption("--kernel", choices=KERNELS, help="of tests on several kernels only those on this one")
    parser.addoption("--bypass-table", type=Path, help="write what this run finds about known tricks to this page")


def pytest_configure(config: pytest.Config) -> None:
    """Have the page written, if one is given."""
    if page := config.getoption("bypass_table", None):
        config.pluginmanager.register(BypassTable(page))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out other kernels; allow for the boot that the first VM of a kind takes, and for a busy machine."""
    wanted = config.getoption("kernel", None)
    others = [item for item in items if wanted and _kernel_of(item.nodeid) not in {wanted, ""}]
    if others:
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]
    for item in items:
        if "/tests/vm/" in str(item.path):
            item.add_marker(pytest.mark.root)
            item.add_marker(pytest.mark.timeout(600))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember a failure, and put the consoles of its VMs into the report while they are there."""
    report = yield
    lab = getattr(item, "funcargs", {}).get("lab")
    if report.failed and isinstance(lab, Lab):
        item.stash[_failed] = True
        for vm in lab.vms:
            report.sections.append((f"console of {vm.name}", vm.console_end()))
    return report


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A lab whose VMs end with the test."""
    lab = Lab()
    yield lab
    lab.keep = request.node.stash.get(_failed, False)
    lab.close()
