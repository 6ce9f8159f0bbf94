"""What is attached follows the rules that hold and those kept for the way back; a folder stands for the bpffs."""

from __future__ import annotations

from pathlib import Path

import pytest

from garrison.common.errors import KernelError
from garrison.minion.enforcers.bpf_lsm import links as module
from garrison.minion.enforcers.bpf_lsm.links import Links
from garrison.minion.enforcers.bpf_lsm.needs import OPTIONAL

CONNECT, CAPABLE, ARGUMENTS = (frozenset({name}) for name in ("guard_connect", "guard_capable", "guard_arguments"))
NONE = frozenset[str]()
ALWAYS = frozenset({"guard_exec", "guard_open"})


class Place:
    """A version's folder, and what was attached there, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.refused = folder, list[str](), ""
        for name in ALWAYS | OPTIONAL:
            (folder / "programs").mkdir(exist_ok=True)
            (folder / "programs" / name).touch()

    def attach(self, program: Path, link: Path, *, cgroup: Path | None) -> None:
        assert program == self.folder / "programs" / link.name
        assert cgroup is None
        if link.name == self.refused:
            raise KernelError(16, f"attach {link.name}")
        link.touch(exist_ok=False)
        self.made.append(link.name)

    @property
    def attached(self) -> set[str]:
        """What is attached beside what always is."""
        there = {path.name for path in (self.folder / "links").iterdir()}
        assert there >= ALWAYS | {"ready"}
        return there - ALWAYS - {"ready"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    made = Place(tmp_path)
    monkeypatch.setattr(module, "attach_pinned", made.attach)
    monkeypatch.setattr(module, "attachable_names", lambda: ALWAYS | OPTIONAL)
    return made


@pytest.fixture
def links(place: Place) -> Links:
    links = Links(place.folder)
    links.attach(NONE)
    return links


def switch(links: Links, needed: frozenset[str]) -> None:
    links.attach(needed)
    links.switched(needed)
    links.trim()


def test_nothing_is_attached_at_first_that_no_rule_needs(links: Links, place: Place) -> None:
    assert (place.attached, links.is_complete()) == (set(), True)


def test_needed_programs_are_there_before_the_switch_and_those_of_before_until_after_it(links: Links, place: Place) -> None:
    switch(links, CONNECT)
    links.attach(CAPABLE)
    assert place.attached == CONNECT | CAPABLE

    links.switched(CAPABLE)
    links.trim()
    assert place.attached == CAPABLE


def test_rules_kept_for_the_way_back_keep_their_programs_through_every_change(links: Links, place: Place) -> None:
    switch(links, CONNECT)
    links.hold()
    switch(links, CAPABLE)
    assert place.attached == CONNECT | CAPABLE
    switch(links, NONE)
    assert place.attached == CONNECT

    links.go_back()
    links.trim()

    assert (place.attached, links.trouble()) == (CONNECT, "")


def test_rules_that_stay_let_go_of_the_programs_of_those_before(links: Links, place: Place) -> None:
    switch(links, CONNECT)
    links.hold()
    switch(links, CAPABLE)

    links.keep()
    links.trim()

    assert place.attached == CAPABLE


def test_arguments_are_looked_at_when_rules_ask_for_it_no_more(links: Links, place: Place) -> None:
    switch(links, ARGUMENTS | CONNECT)
    switch(links, NONE)

    assert place.attached == ARGUMENTS


def test_who_takes_over_attaches_nothing_twice_and_keeps_what_rules_before_need(links: Links, place: Place) -> None:
    switch(links, CONNECT)
    place.made.clear()
    following = Links(place.folder)
    following.take_over()

    following.hold()
    switch(following, CONNECT)
    switch(following, CAPABLE)

    assert (place.attached, place.made) == (CONNECT | CAPABLE, list(CAPABLE))


def test_program_that_cannot_be_attached_is_an_error_and_leaves_what_was_there(links: Links, place: Place) -> None:
    switch(links, CAPABLE)
    place.refused = "guard_listen"

    with pytest.raises(KernelError, match="attach guard_listen"):
        links.attach(frozenset({"guard_bind", "guard_listen", "guard_socket"}))

    assert place.attached == CAPABLE


@pytest.mark.parametrize("gone", ["links/guard_exec", "links/guard_connect", "programs/guard_capable"])
def test_pin_that_somebody_took_away_is_told(links: Links, place: Place, gone: str) -> None:
    switch(links, CONNECT)
    assert links.trouble() == ""

    (place.folder / gone).unlink()

    assert "took 1 of" in links.trouble()
    assert links.is_complete() == (not gone.startswith("programs"))


def test_link_that_somebody_took_away_is_made_again_by_the_next_change(links: Links, place: Place) -> None:
    switch(links, CONNECT)
    (place.folder / "links" / "guard_exec").unlink()

    switch(links, NONE)

    assert (place.attached, links.trouble()) == (set(), "")
