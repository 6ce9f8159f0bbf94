"""System call rules and packets: behaviours 33 and 37."""

from __future__ import annotations

from vm.conformance.model import Alert, Case, Grade, Place, Step, passes, refused, told

__all__ = ["CALLS"]

_HOME, _SRV, _DEEP = "/home/user1/gone", "/srv/conform/gone", "/srv/conform/etc/gone"
_SERVER, _FLOW = "192.0.2.53", "egress 0.0.0.0/0 udp/53"
_ONE, _TWO = "/opt/tools/bin/one", "/opt/tools/bin/deeper/two"


def _own(name: str) -> tuple[str, ...]:
    return (f"behaviours/{name}.yaml",)


def _unlinks(program: str, path: str) -> Step:
    alert = Alert(f"unlink {path}", "unlink", program, "syscall", "audit")
    return told(f"{program} unlink {path}", alert, makes=(path,))


def _unseen(program: str, path: str) -> Step:
    return passes(f"{program} unlink {path}", makes=(path,))


def _call(name: str, *steps: Step, grade: Grade) -> Case:
    return Case(f"syscalls-{name}", _own(f"syscalls-{name}"), steps, grade, behaviours=(33,))


_GLOBAL = Grade(5, "", ("global",))
CALLS: tuple[Case, ...] = (
    _call(
        "any",
        _unlinks("/readwrite", _SRV),
        _unlinks("/usr/bin/curl", _HOME),
        passes("/readwrite write /srv/conform/note.txt"),
        grade=_GLOBAL,
    ),
    _call("from-path", _unlinks("/usr/bin/curl", _SRV), _unseen("/readwrite", _SRV), grade=Grade(9, "curl removes", ("local",))),
    _call("from-dir", _unlinks(_ONE, _SRV), _unseen(_TWO, _SRV), _unseen("/readwrite", _SRV), grade=_GLOBAL),
    _call("from-dir-recursive", _unlinks(_ONE, _SRV), _unlinks(_TWO, _SRV), _unseen("/readwrite", _SRV), grade=_GLOBAL),
    _call("on-path", _unlinks("/readwrite", _SRV), _unseen("/readwrite", _HOME), grade=_GLOBAL),
    _call("on-dir", _unlinks("/readwrite", _SRV), _unseen("/readwrite", _DEEP), _unseen("/readwrite", _HOME), grade=_GLOBAL),
    _call(
        "on-dir-recursive",
        _unlinks("/readwrite", _SRV),
        _unlinks("/readwrite", _DEEP),
        _unseen("/readwrite", _HOME),
        grade=_GLOBAL,
    ),
    _call(
        "on-path-from-path",
        _unlinks("/usr/bin/curl", _SRV),
        _unseen("/usr/bin/curl", _HOME),
        _unseen("/readwrite", _SRV),
        grade=_GLOBAL,
    ),
    Case(
        "syscalls-of-a-workload",
        _own("syscalls-of-a-workload"),
        (
            _unlinks("/readwrite", _SRV),
            _unlinks("/usr/bin/curl", _HOME),
            passes("/readwrite write /srv/conform/note.txt"),
            passes(f"/readwrite unlink {_SRV}", makes=(_SRV,), elsewhere=True),
        ),
        place=Place(("container=ubuntu-1",), "multiubuntu"),
        behaviours=(33,),
    ),
    Case(
        "nsp-egress-block-dns",
        _own("nsp-egress-block-dns"),
        (
            refused(f"curl resolve example.com {_SERVER}", Alert(f"udp://{_SERVER}:53", _FLOW, operation="egress")),
            passes("curl resolve example.com"),  # loopback stays open
            passes("curl udp"),
            passes("curl tcp"),
        ),
        behaviours=(37,),
    ),
)
