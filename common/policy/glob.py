r"""Path globs: ``*`` and ``?`` within a component, ``**`` across components, ``[...]`` classes, ``{a,b}`` alternatives.

Rules of this file:
- ``**`` matches any run of bytes, also none and also ``/``; ``/**/`` also matches a single ``/``.
- A glob is matched over the whole path, byte by byte. ``\x`` is a literal ``x``, but inside ``[...]`` a backslash is itself.
- Compiled once to a regular expression without back references; ``GLOB_STARS_MAX`` bounds how far it can backtrack.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from garrison.common import limits

__all__ = ["GlobError", "bytewise", "can_match", "check_glob", "expand_braces", "glob_matches", "literal_prefix"]

_SPECIAL: Final = "*?[{\\"


class GlobError(ValueError):
    """A pattern that cannot be compiled."""


def check_glob(pattern: str) -> None:
    """Make sure that ``pattern`` compiles.

    Raises:
        GlobError: Not absolute, unbalanced, too long, or with too many alternatives.
    """
    if not pattern.startswith(("/", "*")):
        raise GlobError("must begin with '/' or '*'")
    if len(pattern.encode()) > limits.PATH_MAX_BYTES or "\0" in pattern:
        raise GlobError("is too long or holds a NUL")
    if pattern.count("*") > limits.GLOB_STARS_MAX:
        raise GlobError(f"has more than {limits.GLOB_STARS_MAX} stars")
    for part in expand_braces(pattern):
        _compile(part)


def can_match(pattern: str) -> bool:
    """Return whether any absolute path can match: a single leading ``*`` stops at the first ``/``, so it never does."""
    return any(part.startswith(("/", "**")) for part in expand_braces(pattern))


def glob_matches(pattern: str, path: str) -> bool:
    """Return whether the whole ``path`` matches ``pattern``."""
    raw = bytewise(path)
    return any(_compile(part).fullmatch(raw) for part in expand_braces(pattern))


def literal_prefix(pattern: str) -> str:
    """Return the directory that everything matching ``pattern`` lies below, ending in ``/``."""
    end = next((i for i, char in enumerate(pattern) if char in _SPECIAL), len(pattern))
    return pattern[: pattern.rfind("/", 0, end) + 1] or "/"


@lru_cache(maxsize=4096)
def expand_braces(pattern: str) -> tuple[str, ...]:
    """Return the patterns without alternatives that together mean ``pattern``.

    Raises:
        GlobError: A brace is not closed, or there are more than ``GLOB_ALTERNATIVES_MAX``.
    """
    start = _first_brace(pattern)
    if start < 0:
        return (pattern,)
    depth, parts, last, end, i = 0, list[str](), start + 1, -1, start
    while i < len(pattern):
        char = pattern[i]
        if char == "\\":
            i += 1
        elif char == "{":
            depth += 1
        elif char == "," and depth == 1:
            parts.append(pattern[last:i])
            last = i + 1
        elif char == "}":
            depth -= 1
            if depth == 0:
                parts.append(pattern[last:i])
                end = i
                break
        i += 1
    if end < 0:
        raise GlobError(f"'{{' at {start + 1} is not closed")
    found = [whole for part in parts for whole in expand_braces(pattern[:start] + part + pattern[end + 1 :])]
    if len(found) > limits.GLOB_ALTERNATIVES_MAX:
        raise GlobError(f"has more than {limits.GLOB_ALTERNATIVES_MAX} alternatives")
    return tuple(dict.fromkeys(found))


def _first_brace(pattern: str) -> int:
    i = 0
    while i < len(pattern):
        if pattern[i] == "\\":
            i += 2
            continue
        if pattern[i] == "{":
            return i
        i += 1
    return -1


def bytewise(text: str) -> str:
    """Return ``text`` with one character a byte: a path is bytes to the kernel, and what is matched here is matched there."""
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


@lru_cache(maxsize=4096)
def _compile(glob: str) -> re.Pattern[str]:
    pattern = bytewise(glob)
    out, i = list[str](), 0
    while i < len(pattern):
        char = pattern[i]
        if pattern.startswith("/**/", i):
            out.append("(?:/.*)?")  # the slash behind it comes next, so that /**/**/ works too
            i += 3
        elif pattern.startswith("**", i):
            out.append(".*")
            i += 2
        elif char == "*":
            out.append("[^/]*")
            i += 1
        elif char == "?":
            out.append("[^/]")
            i += 1
        elif char == "[":
            text, i = _char_class(pattern, i)
            out.append(text)
        elif char == "\\":
            if i + 1 == len(pattern):
                raise GlobError("ends in a lone backslash")
            out.append(re.escape(pattern[i + 1]))
            i += 2
        else:
            out.append(re.escape(char))
            i += 1
    return re.compile("".join(out), re.DOTALL)


def _char_class(pattern: str, start: int) -> tuple[str, int]:
    i = start + 1
    negated = i < len(pattern) and pattern[i] in "!^"
    i += negated
    members, first = list[str](), True
    while i < len(pattern) and (pattern[i] != "]" or first):
        if i + 2 < len(pattern) and pattern[i + 1] == "-" and pattern[i + 2] != "]":
            low, high = pattern[i], pattern[i + 2]
            if low > high:
                raise GlobError(f"range {low}-{high} runs backwards")
            members.append(f"{re.escape(low)}-{re.escape(high)}")
            i += 3
        else:
            members.append(re.escape(pattern[i]))
            i += 1
        first = False
    if i >= len(pattern):
        raise GlobError(f"'[' at {start + 1} is not closed")
    # A class never matches a slash: components stay apart, as in the shell.
    return f"(?!/)[{'^' if negated else ''}{''.join(members)}]", i + 1
