"""Fixtures for tests in VMs. A test that fails leaves its VMs' folders behind and shows the ends of their consoles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from vm.lab import Lab

_failed = pytest.StashKey[bool]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow for the boot that the first VM of a kind takes, and for a busy machine."""
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
