"""Takes secrets out of command lines before anything keeps them.

Rules of this file:
- One table of patterns; each says what it is about. What a pattern names is replaced by ``REDACTED``, the rest stays.
- It errs towards hiding, but only inside one argument or the one after a flag that asks for a secret.
- The original is never stored, logged or sent.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

__all__ = ["PATTERNS", "REDACTED", "Pattern", "redact"]

REDACTED: Final = "[redacted]"


class Pattern(NamedTuple):
    """A secret inside an argument: group ``secret`` of ``expression`` is replaced."""

    about: str
    expression: re.Pattern[str]


_ASKING: Final = r"pass(?:word|wd|phrase)?|secret|token|api[-_]?key|access[-_]?key|private[-_]?key|credentials?|auth(?!or)"
PATTERNS: Final = (
    Pattern("--password=…, db_password=…", re.compile(rf"(?i)(?:^|[-_.\w])(?:{_ASKING})\w*\s*[=:]\s*(?P<secret>[^\s&;,]+)")),
    Pattern("Authorization: Bearer …", re.compile(r"(?i)\b(?:bearer|basic|token)\s+(?P<secret>[A-Za-z0-9._~+/=-]{8,})")),
    Pattern("user:password@host", re.compile(r"[a-z][a-z0-9+.-]*://[^\s/:@]*:(?P<secret>[^\s/@]+)@")),
    Pattern("AWS access key", re.compile(r"\b(?P<secret>(?:AKIA|ASIA)[A-Z0-9]{16})\b")),
    Pattern(
        "GitHub, GitLab, Slack tokens",
        re.compile(r"\b(?P<secret>(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-)[A-Za-z0-9_-]{10,})"),
    ),
    Pattern("JSON web token", re.compile(r"\b(?P<secret>eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*)")),
    Pattern("private key", re.compile(r"(?P<secret>-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*)")),
)
# Flags whose next argument is a secret.
_ASKS: Final = re.compile(rf"(?i)--?(?:[\w-]*[-_])?(?:{_ASKING})")
# Programs that take the secret glued to, or after, a short flag.
_SHORT: Final = {
    "mysql": ("-p",), "mysqldump": ("-p",), "mysqladmin": ("-p",), "mariadb": ("-p",), "mariadb-dump": ("-p",),
    "sshpass": ("-p",), "redis-cli": ("-a",), "mongo": ("-p",), "mongosh": ("-p",), "ldapsearch": ("-w",), "curl": ("-u",),
    "smbclient": ("-U",), "htpasswd": ("-b",),
}  # fmt: skip
_NEXT: Final = {"sshpass": "-p", "redis-cli": "-a", "mongo": "-p", "mongosh": "-p", "ldapsearch": "-w", "curl": "-u"}


def redact(args: tuple[str, ...]) -> tuple[tuple[str, ...], int]:
    """Return the arguments without obvious secrets, and how many were taken out.

    Args:
        args: The whole command line, program first.
    """
    if not args:
        return args, 0
    program = args[0].rpartition("/")[2]
    found, out, hide_next = 0, [args[0]], False
    for arg in args[1:]:
        if hide_next and not arg.startswith("--"):
            out.append(REDACTED)
            found, hide_next = found + 1, False
            continue
        hide_next = bool(_ASKS.fullmatch(arg)) or arg == _NEXT.get(program)
        clean, count = _clean(arg, program)
        out.append(clean)
        found += count
    return tuple(out), found


def _clean(arg: str, program: str) -> tuple[str, int]:
    for flag in _SHORT.get(program, ()):
        if arg.startswith(flag) and len(arg) > len(flag) and not arg.startswith("--"):
            return flag + REDACTED, 1
    found = 0
    for pattern in PATTERNS:
        arg, count = pattern.expression.subn(_hide, arg)
        found += count
    return arg, found


def _hide(match: re.Match[str]) -> str:
    start, end = match.span("secret")
    begin = match.start()
    if match["secret"] == REDACTED:
        return match[0]
    return match[0][: start - begin] + REDACTED + match[0][end - begin :]
