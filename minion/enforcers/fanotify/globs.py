"""Compiles globs into the responder's programs (``glob.c``).

The grammar is that of ``common.policy.glob``; a test compares the two.
"""

from __future__ import annotations

from typing import Final

from garrison.common.policy.glob import GlobError, bytewise

__all__ = ["compile_glob"]

_END, _LITERAL, _ONE, _STAR, _ANY, _SKIP, _CLASS = range(7)
_NEGATED: Final = 1 << 23


def _op(code: int, value: int = 0) -> int:
    return code << 24 | value


def compile_glob(glob: str) -> list[int]:
    """Return the program for ``glob``, which has no braces left.

    Raises:
        GlobError: It does not compile.
    """
    pattern = bytewise(glob)
    out, i = list[int](), 0
    while i < len(pattern):
        if pattern.startswith("/**/", i):
            # Nothing, or a slash and anything; the slash behind it comes next.
            out += [_op(_SKIP, 2), _op(_LITERAL, ord("/")), _op(_ANY)]
            i += 3
        elif pattern.startswith("**", i):
            out.append(_op(_ANY))
            i += 2
        elif pattern[i] == "[":
            words, i = _char_class(pattern, i)
            out += words
        elif pattern[i] == "\\":
            if i + 1 == len(pattern):
                raise GlobError("ends in a lone backslash")
            out.append(_op(_LITERAL, ord(pattern[i + 1])))
            i += 2
        else:
            out.append(_SINGLE[pattern[i]] if pattern[i] in _SINGLE else _op(_LITERAL, ord(pattern[i])))
            i += 1
    return [*out, _op(_END)]


_SINGLE: Final = {"*": _op(_STAR), "?": _op(_ONE)}


def _char_class(pattern: str, start: int) -> tuple[list[int], int]:
    i = start + 1
    negated = i < len(pattern) and pattern[i] in "!^"
    i += negated
    ranges, first = list[int](), True
    while i < len(pattern) and (pattern[i] != "]" or first):
        is_range = i + 2 < len(pattern) and pattern[i + 1] == "-" and pattern[i + 2] != "]"
        low, high = pattern[i], pattern[i + 2 * is_range]
        if low > high:
            raise GlobError(f"range {low}-{high} runs backwards")
        ranges += [ord(low), ord(high)]
        i += 3 if is_range else 1
        first = False
    if i >= len(pattern):
        raise GlobError(f"'[' at {start + 1} is not closed")
    return [_op(_CLASS, _NEGATED * negated | len(ranges) // 2), *ranges], i + 1
