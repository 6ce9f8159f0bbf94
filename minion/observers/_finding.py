"""What a source of error lines yields, and what every source can do."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from garrison.common import limits
from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.minion.observers._worker import Stop

__all__ = ["PRIORITY_ERR", "Finding", "Source", "cut_middle", "event_of", "severity_of"]

PRIORITY_ERR: Final = 3  # syslog(3): 0 emerg, 1 alert, 2 crit, 3 err
_SEVERITIES: Final = (10, 9, 8, 6)
_INT64_MAX: Final = (1 << 63) - 1
_CUT: Final = b"\n[...]\n"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One message of priority err or worse.

    Attributes:
        source: ``journal``, ``kernel`` or ``file``.
        message: Its text; may have several lines.
        priority: syslog priority, 0 to 3.
        ts: Wall clock, ns since 1970 UTC; 0 for now.
        object: Where it is from: a unit, a path, ``kernel``.
        data: Further figures, flat.
    """

    source: str
    message: str
    priority: int = PRIORITY_ERR
    ts: int = 0
    object: str = ""
    data: Mapping[str, Scalar] = {}


class Source(abc.ABC):
    """One place that errors are read from; used by one thread only.

    Attributes:
        name: For status and positions.
        error: Why it does not see what it should; empty when it does.
        counters: What it met on its way.
    """

    name: str

    def __init__(self) -> None:
        self.error = ""
        self.counters: dict[str, int] = {}

    @abc.abstractmethod
    def open(self, position: Any) -> None:
        """Go to ``position``, as ``position()`` returned it in an earlier life; ``None`` at the very first start: go to the end.

        Positions come from a file on disk: whatever is malformed counts as ``None``.
        """

    @abc.abstractmethod
    def read(self, stop: Stop, timeout_s: float) -> list[Finding]:
        """Return what is new; waits at most ``timeout_s``, empty when there is nothing or ``stop`` was set."""

    @abc.abstractmethod
    def position(self) -> Any:
        """Return where all that ``read`` returned so far ends: JSON values only."""

    @abc.abstractmethod
    def close(self) -> None:
        """Give back descriptors and processes. Idempotent."""


def severity_of(priority: int) -> int:
    """Return the severity (1 to 10) of a syslog priority."""
    return _SEVERITIES[max(0, min(priority, PRIORITY_ERR))]


def cut_middle(text: str, max_bytes: int = limits.LOG_MESSAGE_MAX_BYTES) -> str:
    """Return ``text`` with its middle replaced by ``[...]`` when its UTF-8 form is longer than ``max_bytes``.

    Both ends are kept: a traceback's first line says where it began, its last one what went wrong.
    """
    raw = text.encode("utf-8", "replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    half = (max_bytes - len(_CUT)) // 2
    return (raw[:half] + _CUT + raw[-half:]).decode("utf-8", "ignore")


def event_of(finding: Finding, *, count: int = 1, more: Mapping[str, Scalar] | None = None) -> Event:
    """Return the event that tells ``finding``; ``count`` above 1 stands for so many messages of its kind."""
    data: dict[str, Scalar | list[Scalar]] = {"source": finding.source, "message": cut_middle(finding.message)}
    data |= {key: _plain(value) for key, value in {"priority": finding.priority, **finding.data, **(more or {})}.items()}
    if count > 1 or more:
        data["count"] = count
    return Event(
        lane=Lane.ERROR,
        kind=Kind.ERROR,
        severity=severity_of(finding.priority),
        ts=finding.ts if 0 <= finding.ts <= _INT64_MAX else 0,
        object=str(_plain(finding.object)),
        data=data,
    )


def _plain(value: Scalar) -> Scalar:
    """Return ``value`` in a form that events can hold: no lone surrogates, no overlong text, no number of more than 64 bits."""
    if isinstance(value, str):
        return value[: limits.EVENT_ARG_MAX_CHARS].encode("utf-8", "replace").decode()
    if isinstance(value, int) and abs(value) > _INT64_MAX:
        return str(value)[: limits.EVENT_ARG_MAX_CHARS]
    return value
