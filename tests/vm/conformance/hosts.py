"""Published host policies and scenarios, and those of their siblings that are written anew."""

from __future__ import annotations

from vm.conformance.model import Alert, Case, Grade, kept_out, passes, refused, told

__all__ = ["HOSTS"]

_BASH, _DASH = "/usr/bin/bash", "/usr/bin/dash"


def _policy(name: str) -> tuple[str, ...]:
    return (f"conformance/host-policies/{name}.yaml",)


def _scenario(number: str, name: str) -> tuple[str, ...]:
    return (f"conformance/host-scenarios/kubearmor-dev-next_test_{number}/hsp-kubearmor-dev-next-{name}.yaml",)


def _own(name: str) -> tuple[str, ...]:
    return (f"behaviours/{name}.yaml",)


_POLICIES = (
    Case(
        "block-process-ls",
        _policy("hsp-block-process-ls"),
        (
            refused("ls /", kept_out("/usr/bin/ls")),
            refused("/bin/ls /", kept_out("/usr/bin/ls")),
            refused("bash -c 'ls / && true'", kept_out("/usr/bin/ls", by=_BASH)),
            passes("cat /etc/hostname"),
            passes("readlink /bin"),
        ),
    ),
    Case(
        "block-process-curl",
        _policy("hsp-block-process-curl"),
        (refused("curl tcp", kept_out("/usr/bin/curl")), passes("ls /"), passes("/readwrite tcp")),
        Grade(5, "curl execution blocked", ("http",)),
    ),
    Case(
        "block-process-before-update",
        _policy("hsp-block-process-before-update"),
        (refused("curl tcp", kept_out("/usr/bin/curl")), passes("ls /")),
    ),
    Case(
        "block-process-after-update",
        _policy("hsp-block-process-after-update"),
        (passes("curl tcp"), refused("ls /", kept_out("/usr/bin/ls"))),
    ),
    Case(
        "block-process-apt-pattern",
        _policy("hsp-block-process-apt-pattern"),
        (
            refused("apt --version", kept_out("/usr/bin/apt", "/usr/bin/apt*")),
            refused("apt-get --version", kept_out("/usr/bin/apt-get", "/usr/bin/apt*")),
            # dash looks further down PATH, where /bin is /usr/bin
            refused("dash -c 'apt-cache --version; exit $?'", *2 * [kept_out("/usr/bin/apt-cache", "/usr/bin/apt*", by=_DASH)]),
            passes("/opt/copy/apt --version"),
            passes("dpkg --version"),
        ),
        Grade(5, "All apt commands are blocked", ("package-manager", "test")),
    ),
    Case(
        "block-file-etc-passwd",
        _policy("hsp-block-file-etc-passwd"),
        (
            refused("cat /etc/passwd", "/etc/passwd"),
            refused("head -n 1 ../etc/passwd", "/etc/passwd", cwd="/usr"),
            refused("bash -c 'echo x >> /etc/passwd'", "/etc/passwd", "/etc/passwd"),  # bash reads it, too
            refused("/readwrite write /etc/passwd", "/etc/passwd"),
            passes("cat /etc/group"),
            passes("cat /etc/passwd-"),
        ),
    ),
    Case(
        "audit-syscall",
        _policy("hsp-audit-syscall"),
        (
            told(
                "/readwrite unlink /home/user1/gone",
                Alert("unlink /home/user1/gone", "unlink", operation="syscall", verdict="audit"),
                makes=("/home/user1/gone",),
            ),
            passes("/readwrite unlink /srv/conform/gone", makes=("/srv/conform/gone",)),
            passes("/readwrite write /home/user1/otherfile.txt"),
        ),
        Grade(7, "Unlink used", ("global-tag",)),
    ),
)

_SCENARIOS = (
    Case(
        "scenario-01-block-diff",
        _scenario("01", "proc-path-block"),
        (refused("diff --help", kept_out("/usr/bin/diff")), passes("cmp --help")),
        Grade(5),
    ),
    Case(
        "scenario-02-audit-passwd",
        _own("scenario-02-audit-passwd"),
        (told("cat /etc/passwd", Alert("/etc/passwd", verdict="audit")), passes("cat /etc/group")),
        Grade(5),
    ),
    Case(
        "scenario-03-block-hostname",
        _scenario("03", "file-path-block"),
        (refused("cat /etc/hostname", "/etc/hostname"), passes("cat /etc/hosts")),
        Grade(5),
    ),
    Case(
        "scenario-04-block-date-from-bash",
        _own("scenario-04-block-date-from-bash"),
        (
            refused("bash -c date", kept_out("/usr/bin/date", "/bin/date", by=_BASH)),
            refused("bash -c 'date; exit $?'", kept_out("/usr/bin/date", "/bin/date", by=_BASH)),
            passes("bash -c ls"),
            passes("dash -c date"),
            passes("date"),
        ),
        Grade(5),
    ),
    Case(
        "scenario-05-allow-date-from-bash",
        _scenario("05", "proc-path-allow-fromSource"),
        (
            passes("bash -c date"),
            refused("bash -c ls", kept_out("/usr/bin/ls", by=_BASH, posture=True)),
            passes("dash -c ls"),
            passes("ls /"),
        ),
        Grade(5),
        posture="block",
    ),
    Case(
        "scenario-05-allow-date-from-bash-audited",
        _scenario("05", "proc-path-allow-fromSource"),
        (passes("bash -c date"), told("bash -c ls", kept_out("/usr/bin/ls", by=_BASH, posture=True, verdict="audit"))),
        Grade(5),
    ),
    Case(
        "scenario-06-block-hostname-from-head",
        _own("scenario-06-block-hostname-from-head"),
        (
            refused("head -n 1 /etc/hostname", "/etc/hostname"),
            passes("head -n 1 /etc/hosts"),
            passes("cat /etc/hostname"),
        ),
        Grade(5),
    ),
    Case(
        "scenario-07-allow-hostname-from-head",
        _scenario("07", "file-path-allow-fromSource"),
        (
            told("head -n 1 /etc/hostname"),
            told("head -n 1 /etc/hosts", Alert("/etc/hosts", posture=True, verdict="audit")),
            passes("cat /etc/hosts"),
        ),
        Grade(5),
        noise=("/etc/ld.so.cache", "/usr/lib/x86_64-linux-gnu/libc.so.6"),
    ),
    Case(
        "scenario-08-allow-default-from-head",
        _own("scenario-08-allow-default-from-head"),
        (
            passes("/opt/tools/head read /etc/default/useradd"),
            refused("/opt/tools/head read /etc/hostname", Alert("/etc/hostname", posture=True)),
            passes("cat /etc/hostname"),
        ),
        Grade(5),
        posture="block",
    ),
    Case(
        "scenario-09-block-default-from-head",
        _scenario("09", "file-dir-block-fromSource"),
        (
            refused("head -n 1 /etc/default/useradd", Alert("/etc/default/useradd", "/etc/default/")),
            passes("head -n 1 /etc/hostname"),
            passes("cat /etc/default/useradd"),
        ),
        Grade(5),
    ),
)

_SIBLINGS = (
    Case(
        "host-block-process-directory",
        _own("host-block-process-directory"),
        (
            refused("/opt/tools/bin/one", kept_out("/opt/tools/bin/one", "/opt/tools/bin/")),
            passes("/opt/tools/bin/deeper/two"),
            passes("ls /opt/tools/bin"),
        ),
        Grade(3, "", ("tools",)),
    ),
    Case(
        "host-block-file-directory",
        _own("host-block-file-directory"),
        (
            refused("cat /srv/conform/etc/one.conf", Alert("/srv/conform/etc/one.conf", "/srv/conform/etc/")),
            refused("cat /srv/conform/etc/deep/two.conf", Alert("/srv/conform/etc/deep/two.conf", "/srv/conform/etc/")),
            refused(
                "/readwrite create /srv/conform/etc/new", Alert("/srv/conform/etc/new", "/srv/conform/etc/", operation="create")
            ),
            passes("cat /srv/conform/other.conf"),
        ),
        Grade(2),
    ),
    Case(
        "host-block-file-pattern",
        _own("host-block-file-pattern"),
        (
            refused("cat /srv/conform/etc/deep/two.conf", Alert("/srv/conform/etc/deep/two.conf", "/srv/conform/**/*.conf")),
            refused("cat /srv/conform/other.conf", Alert("/srv/conform/other.conf", "/srv/conform/**/*.conf")),
            passes("cat /srv/conform/note.txt"),
        ),
    ),
    Case(
        "host-audit-hosts-from-source",
        _own("host-audit-hosts-from-source"),
        (
            told("cat /etc/hosts", Alert("/etc/hosts", verdict="audit")),
            passes("head -n 1 /etc/hosts"),
            passes("cat /etc/hostname"),
        ),
        Grade(4, "hosts file read"),
    ),
    Case(
        "host-audit-network-protocol",
        _own("host-audit-network-protocol"),
        (
            told("curl tcp", Alert("tcp://127.0.0.1:7000", "tcp", operation="connect", verdict="audit")),
            passes("curl udp"),
            passes("/readwrite tcp"),
        ),
        Grade(6, "", ("network",)),
    ),
)

HOSTS: tuple[Case, ...] = _POLICIES + _SCENARIOS + _SIBLINGS
