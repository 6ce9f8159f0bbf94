"""How a node finds out that a new policy did not cost it its master: what the author allows. Signed with the bundle.

Rules of this file:
- Nothing said means: two minutes, and whoever the policy came from must confirm it.
Owns: the terms and how people write them. Does not own: what a node makes of them (``minion/verdict.py``).
"""

from __future__ import annotations

import re
from typing import Annotated, Final

import msgspec

from garrison.common import limits

__all__ = ["ConfirmTerms", "parse_duration"]

_DURATION: Final = re.compile(r"(\d{1,6})\s*(s|m|h)?")
_UNITS: Final = {None: 1, "s": 1, "m": 60, "h": 3600}


class ConfirmTerms(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Terms of one node.

    Attributes:
        timeout_s: Not confirmed within that, the node goes back.
        offline: ``True``: the node's own probes confirm it. ``False``: the master or a person at the node must. ``None``: the
            master must, if the policy came from it over the link; else the probes do.
    """

    timeout_s: Annotated[int, msgspec.Meta(ge=limits.CONFIRM_MIN_S, le=limits.CONFIRM_MAX_S)] = limits.CONFIRM_DEFAULT_S
    offline: bool | None = None


def parse_duration(text: str) -> int:
    """Return seconds for ``90``, ``90s``, ``2m`` or ``1h``.

    Raises:
        ValueError: It is none of these, or out of range.
    """
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a time such as 90s, 2m or 1h")
    seconds = int(found[1]) * _UNITS[found[2]]
    if not limits.CONFIRM_MIN_S <= seconds <= limits.CONFIRM_MAX_S:
        raise ValueError(f"must be from {limits.CONFIRM_MIN_S}s to {limits.CONFIRM_MAX_S // 3600}h")
    return seconds
