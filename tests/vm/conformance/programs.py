"""Container policies on programs: behaviours 1 to 11."""

from __future__ import annotations

from vm.conformance.model import Case, Grade, Step, kept_out, passes, refused, told
from vm.conformance.places import LOADER, NOT_ONE, ONE, THREE, TWO, elsewhere, off_list, own, published

__all__ = ["PROGRAMS"]

_DASH = "/usr/bin/dash"
_SLEEP = kept_out("/usr/bin/sleep", "/bin/sleep")
PROGRAMS: tuple[Case, ...] = (
    Case(
        "block-proc-path",
        published("ksp-group-1-block-proc-path"),
        (refused("sleep 0", _SLEEP), refused("/bin/sleep 0", _SLEEP), passes("cat /secret.txt"), elsewhere("sleep 0")),
        Grade(5, "block /bin/sleep"),
        ONE,
        (1,),
    ),
    Case(
        "audit-proc-path",
        published("ksp-group-2-audit-proc-path"),
        (
            told("sleep 0", kept_out("/usr/bin/sleep", "/bin/sleep", verdict="audit")),
            passes("cat /secret.txt"),
            elsewhere("sleep 0"),
        ),
        Grade(4),
        TWO,
        (2,),
    ),
    Case(
        "block-proc-dir",
        own("block-proc-dir"),
        (
            refused("/sbin/route", kept_out("/usr/sbin/route", "/sbin/")),
            passes("/sbin/deeper/route"),
            passes("ls /"),
            elsewhere("/sbin/route"),
        ),
        Grade(2),
        ONE,
        (3,),
    ),
    Case(
        "block-proc-dir-recursive",
        published("ksp-ubuntu-1-block-proc-dir-recursive"),
        (
            refused("whoami", kept_out("/usr/bin/whoami", "/usr/")),
            refused("env", kept_out("/usr/bin/env", "/usr/")),
            refused("/sbin/deeper/route", kept_out("/usr/sbin/deeper/route", "/usr/")),
            passes("/readwrite read /etc/hostname"),
            passes("/home/user1/hello"),
            elsewhere("whoami"),
        ),
        Grade(2),
        ONE,
        (4,),
    ),
    Case(
        "block-proc-path-from-source",
        own("block-proc-path-from-source"),
        (
            refused("dash -c ls", kept_out("/usr/bin/ls", "/bin/ls", by=_DASH), kept_out("/usr/bin/ls", "/bin/ls", by=_DASH)),
            passes("dash -c pwd"),
            passes("dash -c '/bin/pwd'"),
            passes("bash -c ls"),
            passes("ls /"),
            elsewhere("dash -c ls"),
        ),
        Grade(5, "block ls from dash"),
        ONE,
        (5,),
    ),
    Case(
        "allow-proc-dir",
        published("ksp-ubuntu-3-allow-proc-dir"),
        (
            passes("cat /credentials/password"),
            refused("cat /etc/hostname", off_list("/etc/hostname")),
            refused("/credentials/tool", kept_out("/credentials/tool", posture=True)),
            elsewhere("cat /etc/hostname"),
        ),
        Grade(5, "allow credentials only"),
        THREE,
        (6,),
        "block",
        noise=LOADER,
    ),
    Case(
        "allow-proc-path-owner",
        own("allow-proc-path-owner"),
        (
            refused("/home/user1/hello", kept_out("/home/user1/hello", posture=True)),
            passes("/home/user1/hello", user="user1"),
            passes("/bin/true"),
            elsewhere("/home/user1/hello"),
        ),
        Grade(7),
        THREE,
        (7,),
        "block",
    ),
    Case(
        "block-proc-path-owner",
        published("ksp-ubuntu-3-block-proc-path-owner"),
        (
            refused("/home/user1/hello", kept_out("/home/user1/hello")),
            passes("/home/user1/hello", user="user1"),
            passes("/readwrite"),
            elsewhere("/home/user1/hello"),
        ),
        Grade(7),
        THREE,
        (8,),
    ),
    Case(
        "block-proc-execname",
        published("ksp-ubuntu-1-block-proc-execname"),
        (
            refused("apt --version", kept_out("/usr/bin/apt", "apt")),
            refused("/opt/copy/apt", kept_out("/opt/copy/apt", "apt")),
            passes("/usr/bin/apt-get --version", starts=True),
            elsewhere("/opt/copy/apt"),
        ),
        Grade(5, "block execution of a matching binary name"),
        ONE,
        (9,),
    ),
    Case(
        "match-expression-notin",
        published("ksp-match-expression-notin-block-process"),
        (refused("/opt/copy/apt", kept_out("/opt/copy/apt", "apt")), passes("/readwrite"), elsewhere("/opt/copy/apt")),
        Grade(5, "block execution of a matching binary name"),
        NOT_ONE,
        (9,),
    ),
    Case(
        "allow-proc-args",
        published("ksp-ubuntu-1-allow-proc-args"),
        (
            passes("python3.6 -m random"),
            Step(
                "python3.6 -m pydoc",
                "SIGKILL",
                (_killed := kept_out("/usr/bin/python3.6", by="/usr/bin/python3.6", result="SIGKILL"),),
            ),
            Step("python3.6", "SIGKILL", (_killed,)),
            passes("python3.11 -SEc pass"),
            elsewhere("python3.6 -m pydoc"),
        ),
        Grade(5, "block all arguments except allowedArgs"),
        ONE,
        (10,),
        status={"/usr/bin/python3.6": "degraded"},
    ),
    Case(
        "block-proc-pts",
        own("block-proc-pts"),
        (refused("sleep 0", _SLEEP, tty=True), passes("sleep 0"), passes("ls /", tty=True), elsewhere("sleep 0", tty=True)),
        Grade(5, "block sleep from a terminal"),
        ONE,
        (11,),
    ),
)
