"""Container policies on files, by path, source and terminal: behaviours 12 to 20 and 34 to 36."""

from __future__ import annotations

from vm.conformance.model import Alert, Case, Grade, passes, refused, told
from vm.conformance.places import FOUR, LOADER, ONE, PASSWORD, PRIVATE, TWO, audited, elsewhere, off_list, own, published

__all__ = ["OPENED"]

OPENED: tuple[Case, ...] = (
    Case(
        "block-file-pts",
        published("ksp-group-1-block-file-pts"),
        (
            refused("cat /etc/hostname", "/etc/hostname", tty=True),
            passes("cat /etc/hostname"),
            passes("cat /etc/hosts", tty=True),
            elsewhere("cat /etc/hostname", tty=True),
        ),
        Grade(5, "block file read from pts"),
        ONE,
        (12,),
    ),
    Case(
        "allow-file-path-from-source-path",
        published("ksp-group-2-allow-file-path-from-source-path"),
        (
            passes("cat /secret.txt"),
            refused("cat /etc/hostname", off_list("/etc/hostname")),
            refused("head /secret.txt", off_list("/secret.txt")),
            elsewhere("cat /etc/hostname"),
        ),
        Grade(5, "allow /bin/cat to access /secret.txt"),
        TWO,
        (13,),
        "block",
        noise=LOADER,
    ),
    Case(
        "audit-file-path-from-source-path",
        published("ksp-group-2-audit-file-path-from-source-path"),
        (
            told("cat /secret.txt", audited("/secret.txt")),
            passes("cat /etc/hostname"),
            passes("head /secret.txt"),
            elsewhere("cat /secret.txt"),
        ),
        Grade(5, "audit /bin/cat accessing /secret.txt"),
        TWO,
        (14,),
    ),
    Case(
        "block-file-path-from-source-path",
        own("block-file-path-from-source-path"),
        (
            refused("cat /secret.txt", "/secret.txt"),
            passes("head /secret.txt"),
            passes("cat /etc/hostname"),
            elsewhere("cat /secret.txt"),
        ),
        Grade(5, "no secret for cat"),
        TWO,
        (15,),
    ),
    Case(
        "block-file-dir-recursive",
        published("ksp-ubuntu-4-block-file-dir-recursive"),
        (
            refused("cat /credentials/password", Alert(PASSWORD, "/credentials/")),
            refused("cat /credentials/keys/priv.key", Alert(PRIVATE, "/credentials/")),
            refused("/readwrite write /credentials/password", Alert(PASSWORD, "/credentials/")),
            passes("cat /secret.txt"),
            elsewhere("cat /credentials/password"),
        ),
        Grade(9),
        FOUR,
        (16,),
    ),
    Case(
        "audit-file-dir",
        published("ksp-ubuntu-1-audit-file-dir"),
        (
            told("cat /credentials/password", audited(PASSWORD, "/credentials/")),
            told("cat /credentials/keys/priv.key", audited(PRIVATE, "/credentials/")),
            passes("cat /secret.txt"),
            elsewhere("cat /credentials/password"),
        ),
        Grade(5, "audit credentials"),
        ONE,
        (17,),
    ),
    Case(
        "block-file-pattern",
        own("block-file-pattern"),
        (
            refused("cat /etc/shadow", Alert("/etc/shadow", "/etc/*shadow")),
            refused("cat /etc/gshadow", Alert("/etc/gshadow", "/etc/*shadow")),
            passes("cat /etc/passwd"),
            passes("cat /etc/gshadow.old"),
            elsewhere("cat /etc/shadow"),
        ),
        Grade(5, "shadow files"),
        ONE,
        (20,),
    ),
    Case(
        "token-for-one-program",
        own("token-for-one-program"),
        (
            passes("cat /run/secrets/kubernetes.io/serviceaccount/token"),
            refused(
                "head /run/secrets/kubernetes.io/serviceaccount/token",
                Alert("/run/secrets/kubernetes.io/serviceaccount/token", "/run/secrets/kubernetes.io/serviceaccount/"),
            ),
            passes("cat /etc/passwd"),
            passes("head -n 1 /etc/passwd"),
            elsewhere("head /run/secrets/kubernetes.io/serviceaccount/token"),
        ),
        Grade(7, "token taken"),
        ONE,
        (34,),
    ),
    Case(
        "block-config",
        own("block-config"),
        (
            refused("cat /srv/www/config.php", "/srv/www/config.php"),
            refused("cat config.php", "/srv/www/config.php", cwd="/srv/www"),
            refused("cat ../www/./config.php", "/srv/www/config.php", cwd="/srv/conform"),
            passes("cat index.php", cwd="/srv/www"),
            elsewhere("cat /srv/www/config.php"),
        ),
        Grade(10, "configuration read"),
        ONE,
        (35,),
    ),
    Case(
        "two-policies",
        own("block-config", "block-index"),
        (
            refused("cat /srv/www/config.php", Alert("/srv/www/config.php", policy="block-config")),
            refused(
                "cat /srv/www/index.php",
                Alert("/srv/www/index.php", policy="block-index", grade=Grade(3, "index read", ("web",))),
            ),
            passes("cat /srv/conform/note.txt"),
            elsewhere("cat /srv/www/index.php"),
        ),
        Grade(10, "configuration read"),
        ONE,
        (36,),
    ),
)
