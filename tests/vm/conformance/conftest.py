"""``--write-table`` writes docs/conformance.md from what a run over all cases and kernels came to."""

from __future__ import annotations

import pytest

from vm.conformance import table

_results = pytest.StashKey[dict[tuple[str, str], str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--write-table", action="store_true", help=f"write {table.PAGE.name} from this run")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Note what became of each case."""
    report = yield
    spec = getattr(item, "callspec", None)
    if spec is not None and "case" in spec.params and (report.when == "call" or report.failed):
        case, kernel = spec.params["case"], spec.params["player"].kernel
        results = item.config.stash.setdefault(_results, {})
        results[kernel, case.name] = table.wanted(case) if report.passed else "failed"
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the page, if all of it was played."""
    if not session.config.getoption("--write-table", default=False):
        return
    results = session.config.stash.get(_results, {})
    missing = len(table.KERNELS) * len(table.CASES) - len(results)
    if missing:
        raise pytest.UsageError(f"--write-table needs every case on every kernel, {missing} were not played: run without -k")
    table.PAGE.write_text(table.render(results))
