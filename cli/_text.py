"""Text from nodes on the operator's terminal: shown, never obeyed."""

from __future__ import annotations

__all__ = ["harmless"]


def harmless(text: str) -> str:
    """Return ``text`` with everything but printable characters and tabs replaced.

    A node must not be able to move the operator's cursor, retitle the terminal or hide a line.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() or c == "\t" else "\ufffd" for c in text)
