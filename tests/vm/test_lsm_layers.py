"""An overlay, which is what containers have for a root: what is opened below it is nobody's use, and no way around."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from garrison.common.policy.rules import Posture, Postures, Verdict
from vm.lab import K61, K612, Lab, Machine
from vm.lsm import Guard, file

OWNER = "1000"
LAYERS = f"""
mkdir -p /srv/l && mount -t tmpfs l /srv/l && cd /srv/l && mkdir -p low/d up work merged
for f in owned read written listed named d/x; do echo $f >low/$f; done
chmod 666 low/* low/d/*; chown {OWNER} low/owned low/written
modprobe overlay && mount -t overlay o -o lowerdir=low,upperdir=up,workdir=work merged
"""


@pytest.fixture(scope="module", params=[K61, K612], ids=["6.1", "6.12"])
def guard(request: pytest.FixtureRequest) -> Iterator[Guard]:
    """An enforcer in a VM of its own with an overlay on /srv/l/merged; each test uses another file of it."""
    machine: Machine = request.param
    with Lab() as lab:
        guard = Guard(lab.boot("layers", machine))
        guard.vm.check("sh", "-c", LAYERS)
        yield guard


def told_about(guard: Guard) -> list[tuple[str, str]]:
    """Return what was told until now: the rule on /etc/hosts is told after all else."""
    assert guard.opens("/etc/hosts")
    found: list[tuple[str, str]] = []
    while ("/etc/hosts", "audit") not in found:
        found += [(e.object, e.verdict) for e in guard.events()]
    return found[:-1]


LAST = file("/etc/hosts", Verdict.AUDIT)


def test_owner_of_a_file_may_read_it_and_nobody_else(guard: Guard) -> None:
    guard.hold(file("/srv/l/merged/owned", owner_only=True), LAST)

    assert guard.tries("open('/srv/l/merged/owned').read()", user=OWNER) == "OK"
    assert guard.tries("open('/srv/l/merged/owned').read()") == "EPERM"
    assert told_about(guard) == [("/srv/l/merged/owned", "block")]


def test_owner_may_write_what_must_be_copied_up_first(guard: Guard) -> None:
    guard.hold(file("/srv/l/merged/written", owner_only=True), LAST)

    assert guard.tries("open('/srv/l/merged/written', 'a').write('x')", user=OWNER) == "OK"
    assert guard.tries("open('/srv/l/merged/written', 'a').write('x')") == "EPERM"
    assert told_about(guard) == [("/srv/l/merged/written", "block")]


def test_audited_open_is_told_once(guard: Guard) -> None:
    guard.hold(file("/srv/l/merged/read", Verdict.AUDIT), LAST)

    assert guard.opens("/srv/l/merged/read")
    assert told_about(guard) == [("/srv/l/merged/read", "audit")]


def test_allow_list_lets_its_file_be_copied_up(guard: Guard) -> None:
    tee = file("/srv/l/merged/listed", Verdict.ALLOW, by="/usr/bin/tee")
    libraries = file("/usr/lib/**", Verdict.ALLOW, by="/usr/bin/tee")
    guard.hold(tee, libraries, LAST, postures=Postures(file=Posture.BLOCK))

    assert guard.vm.run("tee", "-a", "/srv/l/merged/listed", stdin="more").returncode == 0
    assert "Operation not permitted" in guard.vm.run("tee", "-a", "/srv/l/merged/named", stdin="more").stderr
    assert {object_ for object_, _ in told_about(guard)} == {"/srv/l/merged/named", "/etc/ld.so.cache"}


def test_file_of_a_layer_that_a_rule_names_is_refused_under_every_overlay(guard: Guard) -> None:
    guard.hold(file("/srv/l/low/named"), LAST)

    assert not guard.opens("/srv/l/merged/named")
    assert guard.opens("/srv/l/merged/read")
    assert told_about(guard) == [("/srv/l/merged/named", "block")]


def test_directory_of_a_layer_holds_under_an_overlay_where_the_kernel_shows_its_layers(guard: Guard) -> None:
    """Before 6.5 the file that an overlay opens below has the overlay's path, and leads to no directory of the layer."""
    guard.hold(file("/srv/l/low/d/**"), LAST)

    assert guard.opens("/srv/l/merged/d/x") is (guard.vm.machine.kernel == "6.1")
    assert not guard.opens("/srv/l/low/d/x")
