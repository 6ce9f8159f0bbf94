"""The event record: what a node saw or did, flat and versioned, the same from kernel to sink.

Rules of this file:
- Meanings follow OCSF classes; names are ours and stable. Fields are only ever added; ``v`` rises when one changes meaning.
- An event's identity is ``(node, epoch, seq)``; the spool gives ``epoch`` and ``seq`` when it commits.
- ``data`` is flat: scalars or lists of scalars. Nothing nested comes off the wire.
Owns: the record, the lanes, its binary form. Does not own: how it is stored (``minion.spool``, ``master.store``) or rendered.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Annotated, Final

import msgspec

from garrison.common import limits
from garrison.common.errors import FrameError

__all__ = [
    "EVENT_VERSION",
    "Actor",
    "Event",
    "Kind",
    "Lane",
    "Scalar",
    "decode_event",
    "encode_event",
    "event_from_json",
    "event_to_json",
]

EVENT_VERSION: Final = 1

Scalar = str | int | float | bool | None

# SQLite, JSON readers and SIEMs take 64-bit signed numbers; what is not one of them must not get in.
_Int64 = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]


class Lane(IntEnum):
    """Priority class of an event; lower is more precious and is sent and kept first."""

    ALERT = 0
    SHELL = 1
    ERROR = 2
    STATE = 3
    METRIC = 4


class Kind(StrEnum):
    """What an event is about. Kinds outside this list are legal on the wire and are shown as they are."""

    ALERT = "alert"  # a rule matched: lane ALERT; operation, verdict, policy, rule, backend are set
    TAMPER = "tamper"  # enforcement was weakened or attacked: lane ALERT
    EXEC = "exec"  # a command started: lane SHELL; actor is the new process
    EXIT = "exit"  # a command of a session ended: lane SHELL; data.exit_code, data.duration_ms
    ERROR = "error"  # a log line of priority err or worse: lane ERROR; data.source, data.message
    METRIC = "metric"  # a resource sample: lane METRIC; data holds the figures, units in the names
    APPLY = "apply"  # a generation was applied, refused or reverted: lane STATE
    AGENT = "agent"  # the agent started, stopped, degraded, recovered: lane STATE
    GAP = "gap"  # events were lost: on the lane that lost them; data.first_seq, last_seq, count, reason


class Actor(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """The process that acted. Numbers are ``-1`` and strings empty when unknown.

    Attributes:
        pid: Process id (thread group) as seen in the agent's PID namespace.
        ppid: Its parent's.
        exe: Path of the running image.
        args: Arguments, at most ``EVENT_ARGS_MAX`` of at most ``EVENT_ARG_MAX_CHARS``; ``[...]`` marks what was cut.
        cwd: Working directory.
        uid: Effective user id.
        auid: Login (audit) user id; -1 when the process belongs to no login.
        ses: Audit session id; -1 when none.
        tty: Controlling terminal, e.g. ``pts/3``.
        unit: systemd unit or cgroup path.
        container: Container id, if any.
    """

    pid: _Int64 = -1
    ppid: _Int64 = -1
    exe: str = ""
    args: tuple[str, ...] = ()
    cwd: str = ""
    uid: _Int64 = -1
    auid: _Int64 = -1
    ses: _Int64 = -1
    tty: str = ""
    unit: str = ""
    container: str = ""


class Event(msgspec.Struct, omit_defaults=True, frozen=True, kw_only=True):
    """One thing that happened on a node.

    Attributes:
        v: Version of this record.
        node: Node name; set by the master from the authenticated key, never trusted from the wire.
        epoch: One life of the node's spool (hex); empty before commit.
        seq: Position in that epoch, from 1, over all lanes; 0 before commit.
        ts: Wall clock, ns since 1970 UTC, as the node had it.
        mono: CLOCK_MONOTONIC, ns; orders events of one ``boot``.
        boot: Kernel boot id.
        lane: Priority class.
        kind: What it is about; see ``Kind``.
        severity: 1 (least) to 10.
        actor: Who did it; ``None`` when no process did.
        object: What it was done to: a path, ``tcp://10.0.0.9:443``, a capability, a unit.
        operation: ``exec`` ``open`` ``connect`` ``sendmsg`` ``bind`` ``socket`` …
        verdict: ``allow`` ``audit`` ``block``; empty when no policy spoke.
        result: What the process got: ``passed`` or an errno name such as ``EPERM``.
        policy: Name of the policy that decided.
        rule: Id of the rule that decided.
        backend: What enforced or saw it.
        data: Further figures, flat.
    """

    v: _Count = EVENT_VERSION
    node: str = ""
    epoch: str = ""
    seq: _Count = 0
    ts: _Count = 0
    mono: _Count = 0
    boot: str = ""
    lane: Lane = Lane.STATE
    kind: str = ""
    severity: _Int64 = 1
    actor: Actor | None = None
    object: str = ""
    operation: str = ""
    verdict: str = ""
    result: str = ""
    policy: str = ""
    rule: str = ""
    backend: str = ""
    data: dict[str, Scalar | list[Scalar]] = {}

    @property
    def id(self) -> str:
        """``node/epoch/seq``: stable over every retry, so sinks can drop repeats."""
        return f"{self.node}/{self.epoch}/{self.seq}"


_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(Event)
_json_encoder: Final = msgspec.json.Encoder()
_json_decoder: Final = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Return the msgpack form of ``event``.

    Raises:
        FrameError: It takes more than ``EVENT_MAX_BYTES`` (the caller must cut arguments or data, never the spool), or holds what
            has no encoding: a lone surrogate, a number of more than 64 bits, an object.
    """
    try:
        raw = _encoder.encode(event)
    except (TypeError, OverflowError, UnicodeEncodeError, RecursionError) as err:
        raise FrameError(f"event of kind {event.kind!r} cannot be encoded: {err}") from err
    if len(raw) > limits.EVENT_MAX_BYTES:
        raise FrameError(f"event of kind {event.kind!r} takes {len(raw)} bytes, the limit is {limits.EVENT_MAX_BYTES}")
    return raw


def decode_event(raw: bytes | memoryview) -> Event:
    """Return the event in ``raw``.

    Raises:
        FrameError: Not an event: too long, wrong types, nested too deeply, numbers of more than 63 bits, or too many data keys.
    """
    if len(raw) > limits.EVENT_MAX_BYTES:
        raise FrameError(f"event takes {len(raw)} bytes, the limit is {limits.EVENT_MAX_BYTES}")
    try:
        event = _decoder.decode(raw)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as err:
        raise FrameError(f"not an event: {err}") from err
    return _checked(event)


def _checked(event: Event) -> Event:
    if len(event.data) > limits.EVENT_DATA_MAX_KEYS:
        raise FrameError(f"event has {len(event.data)} data keys, the limit is {limits.EVENT_DATA_MAX_KEYS}")
    return event


def event_to_json(event: Event) -> str:
    """Return the JSON form that ``garrison events --json`` prints: one object, defaults left out, ``lane`` as its number."""
    return _json_encoder.encode(event).decode()


def event_from_json(text: str | bytes) -> Event:
    """Return the event in a JSON line made by ``event_to_json``.

    Raises:
        FrameError: Not such a line.
    """
    try:
        return _checked(_json_decoder.decode(text))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeError, RecursionError) as err:
        raise FrameError(f"not an event: {err}") from err
