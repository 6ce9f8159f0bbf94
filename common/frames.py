"""The frames of the link: typed messages in msgpack, optionally zstd, one message a frame.

Rules of this file:
- A frame is one byte of encoding (0 plain, 1 zstd) and one msgpack object, tagged by ``t``. Nothing else is accepted.
- Unknown fields are ignored, unknown tags are refused: that is how versions N and N-1 talk to each other.
- Every message is idempotent. Who sent it is told by the CURVE key, never by the frame.
- Limits are checked before memory is spent: on the frame, on its plain size, on counts after decoding.
"""

from __future__ import annotations

import threading
from typing import Annotated, Final, TypeVar

import msgspec
import zstandard

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.frame_fields import CountField as _Count
from garrison.common.frame_fields import HexField as _Hex
from garrison.common.frame_fields import IntField as _Int
from garrison.common.frame_fields import StrField as _Str
from garrison.common.relay_frames import (
    Forward,
    Passed,
    Presence,
    RelayAssignment,
    RelayNodes,
    Sealed,
    Signed,
    check_relay_message,
)

__all__ = [
    "PROTOCOL",
    "Ack",
    "ApplyReport",
    "Assignment",
    "Batch",
    "Chunk",
    "ChunkRequest",
    "ConfirmRequest",
    "Confirmed",
    "Down",
    "Hello",
    "Job",
    "JobCancel",
    "JobOutput",
    "JobResult",
    "Ping",
    "Pong",
    "Refused",
    "RuleReport",
    "Up",
    "Wait",
    "Welcome",
    "decode_down",
    "decode_up",
    "encode_frame",
    "plain_bytes",
]

PROTOCOL: Final = 1  # raised when an old peer could misread a message; N and N-1 must talk


class _Frame(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag=str.lower):
    """Base of all messages."""


# ---- minion → master ------------------------------------------------------------------------------------------------
class Hello(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """First message of a connection: what this node is and has.

    Attributes:
        proto: Highest protocol version spoken.
        node: The name the node believes it has; must equal what the master holds for the key.
        instance: Random per agent start; two live instances of one key are clones.
        boot: Kernel boot id.
        version: Agent version.
        epoch: Current spool epoch.
        next_seq: The next sequence number that epoch will use; a master that acked past it knows the node was restored.
        unacked: Events waiting, by lane.
        acked: Highest acknowledged number of the epoch, by lane: a master that has less was restored from an older copy.
        acked_events: How many events of the epoch were acknowledged, by lane; left out where the node cannot know.
        generation: Applied generation, 0 for none.
        bundle: Digest of the applied bundle's metadata, empty for none.
        backends: Backend name → ``ok`` or why it cannot work.
        grains: Facts: os, kernel, arch, and so on.
        relay: It is a relay, which speaks for others.
        signing_key: Ed25519 public key that signs what travels through a relay.
        vouch: By the node's CURVE key for its signing key (``common.trust.pair``).
        waits: It understands ``Wait``; an older node would take it for a broken message.
    """

    proto: _Int = PROTOCOL
    node: _Str = ""
    instance: _Hex = ""
    boot: _Str = ""
    version: _Str = ""
    epoch: _Hex = ""
    next_seq: _Count = 1
    unacked: dict[_Str, _Count] = {}
    acked: dict[_Str, _Count] = {}
    acked_events: dict[_Str, _Count] = {}
    generation: _Count = 0
    bundle: _Hex = ""
    backends: dict[_Str, _Str] = {}
    grains: dict[_Str, _Str] = {}
    relay: bool = False
    signing_key: _Hex = ""
    vouch: _Hex = ""
    waits: bool = False


class Batch(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Events of one lane, oldest first.

    Attributes:
        epoch: Spool epoch they belong to.
        lane: Lane they all share.
        seqs: Sequence numbers, strictly rising; gaps are other lanes' numbers or acked events.
        events: Encoded events, as ``encode_event`` made them, in the order of ``seqs``. Their own ``epoch``, ``seq`` and ``node``
            are not set: the batch and the authenticated key say them.
    """

    epoch: _Hex
    lane: _Int
    seqs: list[_Count]
    events: list[bytes]


class ChunkRequest(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Ask for one piece of a content-addressed blob (bundle metadata or a bundle's file)."""

    digest: _Hex
    offset: _Count = 0


class RuleReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of a compile report: what became of one rule on this node.

    Attributes:
        rule: Rule id.
        status: ``enforced`` ``audited`` ``degraded`` ``impossible`` ``inert``.
        backend: What took it; empty when nothing did.
        reason: Why it is not simply enforced.
    """

    rule: _Str
    status: _Str
    backend: _Str = ""
    reason: _Str = ""


class ApplyReport(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """What became of an assignment.

    Attributes:
        generation: The generation spoken of.
        bundle: Its bundle.
        state: ``applied``; ``pending``: enforced on trial; ``refused``, ``failed``: never enforced; ``reverted``: was, on trial,
            and is not to be tried again; ``quarantined``: was offered again after that. But for ``applied`` and ``pending`` the
            previous one enforces.
        error: Why not, for all but ``applied``; until when, for ``pending``.
        rules: The compile report, for ``applied``.
    """

    generation: _Count
    bundle: _Hex
    state: _Str
    error: _Str = ""
    rules: list[RuleReport] = []


class ConfirmRequest(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Asked as the only message of a new connection: is this node, under what it enforces now, as it was assigned to be?

    Attributes:
        generation: On trial.
        bundle: Its bundle.
        nonce: Random; comes back in the answer.
    """

    generation: _Count
    bundle: _Hex
    nonce: _Hex


class JobOutput(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a running command's output, in order. ``stream`` is 1 (stdout) or 2 (stderr)."""

    job: _Hex
    n: _Count
    stream: _Int
    data: bytes


class JobResult(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """How a command ended.

    Attributes:
        job: Job id.
        exit_code: Exit code, or -signal.
        error: Why it did not run or was stopped; empty when it ran to its end.
        outputs: How many ``JobOutput`` pieces were sent.
        dropped_bytes: Output over the limit, counted and dropped.
        duration_ms: Wall time.
    """

    job: _Hex
    exit_code: _Int
    error: _Str = ""
    outputs: _Count = 0
    dropped_bytes: _Count = 0
    duration_ms: _Count = 0


# ---- master → minion ------------------------------------------------------------------------------------------------
class Welcome(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to ``Hello``.

    Attributes:
        proto: Version to speak.
        credits: Batches that may be unacknowledged at once.
        acked: Highest durable seq of the hello's epoch by lane (lane number as text): the node deletes up to there.
        generation: Highest generation assigned to this node, 0 for none; an ``Assignment`` follows when the node lacks it.
        time_ns: Master's wall clock.
        confirms: It answers ``ConfirmRequest``; a master that does not know it would take it for a broken message.
        relays: It takes what a relay sends; one that does not know relays would file it as events that it cannot read.
        seen: Highest number of the hello's epoch that came by a relay, over all lanes: not for deleting, only for recognising a
            node that was restored from a copy.
    """

    proto: _Int = PROTOCOL
    credits: _Count = 1
    acked: dict[_Str, _Count] = {}
    generation: _Count = 0
    time_ns: _Count = 0
    confirms: bool = False
    relays: bool = False
    seen: _Count = 0


class Wait(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """First answer to a ``Hello`` when many came at once: this one's turn comes, in about ``wait_s`` seconds. May come again."""

    wait_s: Annotated[float, msgspec.Meta(ge=0.0, le=limits.WELCOME_WAIT_MAX_S)]


class Refused(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """The master, or a relay, will not serve this.

    ``code``: ``version`` ``name`` ``clone`` ``retired`` ``protocol`` ``confirm``; ``role``: a relay's key used as a node's, or
    the other way round; ``uplink``: the relay cannot ask its master.
    """

    code: _Str
    reason: _Str = ""


class Confirmed(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Yes to a ``ConfirmRequest``: what it spoke of is what this node is assigned."""

    nonce: _Hex


class Ack(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Everything of this epoch and lane up to ``seq`` is durable at the master."""

    epoch: _Hex
    lane: _Int
    seq: _Count


class Assignment(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Signed assignment (``common.trust``) with the chains of root metadata needed to verify it.

    Attributes:
        assignment: Signed metadata.
        assignment_roots: Versions of the assignment repository's root, oldest first.
        bundle_roots: Versions of the bundle repository's root, oldest first.
    """

    assignment: bytes
    assignment_roots: list[bytes] = []
    bundle_roots: list[bytes] = []


class Chunk(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """A piece of a blob. ``total`` is -1 when the master does not have it."""

    digest: _Hex
    offset: _Count
    total: _Int
    data: bytes = b""


class Job(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Run a command: no shell unless ``argv`` names one.

    Attributes:
        job: Id, 32 hex digits; a repeated id is answered from the journal, never run twice.
        argv: Program and arguments.
        timeout_s: Killed (TERM, then KILL after 5 s) after this long.
        env: Added to a minimal environment.
        cwd: Working directory.
        user: Run as this user; empty for root.
        stdin: Bytes given on standard input.
    """

    job: _Hex
    argv: list[str]
    timeout_s: float = 60.0
    env: dict[_Str, _Str] = {}
    cwd: _Str = "/"
    user: _Str = ""
    stdin: bytes = b""


class JobCancel(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Stop a running job, or never start it."""

    job: _Hex


# ---- both ways ------------------------------------------------------------------------------------------------------
class Ping(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Answer with a ``Pong`` of the same number."""

    n: _Count = 0


class Pong(_Frame, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to ``Ping``."""

    n: _Count = 0


_Node = Hello | Batch | ChunkRequest | ApplyReport | ConfirmRequest | JobOutput | JobResult | Ping | Pong
Up = _Node | Signed | Forward | Presence | Passed
_Master = Welcome | Wait | Refused | Confirmed | Ack | Assignment | Chunk | Job | JobCancel | Ping | Pong
Down = _Master | Sealed | RelayNodes | RelayAssignment | Passed

_COMPRESS_FROM_BYTES: Final = 512  # smaller frames grow or gain nothing worth the CPU
_T = TypeVar("_T")

_encoder: Final = msgspec.msgpack.Encoder()
_up: Final = msgspec.msgpack.Decoder(Up)
_down: Final = msgspec.msgpack.Decoder(Down)


class _Zstd(threading.local):
    """Contexts of this thread: making one costs more than a small frame; they must not be shared."""

    def __init__(self) -> None:
        self.compressor = zstandard.ZstdCompressor(level=3)
        self.decompressor = zstandard.ZstdDecompressor()


_zstd: Final = _Zstd()


def encode_frame(message: Up | Down) -> bytes:
    """Return the frame for ``message``, compressed when that pays.

    Raises:
        FrameError: Larger than ``FRAME_MAX_BYTES``: the caller must split it; or it holds what has no encoding.
    """
    try:
        plain = _encoder.encode(message)
    except (TypeError, OverflowError, UnicodeEncodeError) as err:
        raise FrameError(f"{type(message).__name__} cannot be encoded: {err}") from err
    if len(plain) > limits.FRAME_PLAIN_MAX_BYTES:
        raise FrameError(f"{type(message).__name__} takes {len(plain)} bytes, over the limit")
    frame = b"\x00" + plain
    if len(plain) >= _COMPRESS_FROM_BYTES:
        packed = b"\x01" + _zstd.compressor.compress(plain)
        frame = packed if len(packed) < len(frame) else frame
    if len(frame) > limits.FRAME_MAX_BYTES:
        raise FrameError(f"{type(message).__name__} takes {len(frame)} bytes on the wire, over the limit")
    return frame


def decode_up(frame: bytes, plain_max_bytes: int = limits.FRAME_PLAIN_MAX_BYTES) -> Up:
    """Return the message that a minion sent.

    Args:
        frame: As it came.
        plain_max_bytes: At most so much unpacked.

    Raises:
        FrameError: Too large, not a frame, an unknown message, wrong types, or counts over a limit.
    """
    message: Up = _decode(frame, _up, plain_max_bytes)
    _check_up(message)
    return message


def plain_bytes(frame: bytes) -> int:
    """Return how large a frame that could be decoded is unpacked."""
    return len(frame) - 1 if frame[0] == 0 else int(zstandard.frame_content_size(frame[1:]))


def decode_down(frame: bytes) -> Down:
    """Return the message that a master sent.

    Raises:
        FrameError: As ``decode_up``.
    """
    message: Down = _decode(frame, _down, limits.FRAME_PLAIN_MAX_BYTES)
    _check_down(message)
    return message


def _decode(frame: bytes, decoder: msgspec.msgpack.Decoder[_T], plain_max_bytes: int) -> _T:
    if not 1 < len(frame) <= limits.FRAME_MAX_BYTES:
        raise FrameError(f"frame of {len(frame)} bytes")
    try:
        if frame[0] == 0:
            return decoder.decode(memoryview(frame)[1:])
        if frame[0] == 1:
            return decoder.decode(_decompress(frame[1:], plain_max_bytes))
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as err:
        raise FrameError(f"not a frame: {err}") from err
    except zstandard.ZstdError as err:
        raise FrameError(f"compressed frame is damaged: {err}") from err
    raise FrameError(f"frame encoding {frame[0]} is unknown")


def _decompress(packed: bytes, plain_max_bytes: int) -> bytes:
    # The declared size is checked first, and bounds what is allocated; a header that lies about it fails in the library.
    size = zstandard.frame_content_size(packed)
    if not 0 < size <= plain_max_bytes:
        raise FrameError(f"compressed frame declares {size} bytes")
    plain: bytes = _zstd.decompressor.decompress(packed, max_output_size=size, allow_extra_data=False)
    return plain


def _check_down(message: Down) -> None:
    check_relay_message(message)
    if isinstance(message, Job):
        if not 1 <= len(message.argv) <= limits.JOB_ARGV_MAX or len(message.env) > limits.JOB_ENV_MAX:
            raise FrameError(f"job has {len(message.argv)} arguments and {len(message.env)} variables")
        if not (message.job and 0 < message.timeout_s <= limits.JOB_TIMEOUT_MAX_S):  # also refuses NaN
            raise FrameError(f"job {message.job!r} has a time limit of {message.timeout_s} s")
    elif isinstance(message, Assignment):
        roots = len(message.assignment_roots) + len(message.bundle_roots)
        if roots > 2 * limits.ROOT_ROTATIONS_MAX:
            raise FrameError(f"assignment carries {roots} root metadata files")
    elif isinstance(message, Welcome) and len(message.acked) > limits.HELLO_MAX_ITEMS:
        raise FrameError(f"welcome acknowledges {len(message.acked)} lanes")


def _check_up(message: Up) -> None:
    check_relay_message(message)
    if isinstance(message, Batch):
        if not 1 <= len(message.events) <= limits.BATCH_MAX_EVENTS or len(message.seqs) != len(message.events):
            raise FrameError(f"batch has {len(message.events)} events and {len(message.seqs)} numbers")
        if any(b <= a for a, b in zip(message.seqs, message.seqs[1:], strict=False)) or message.seqs[0] < 1:
            raise FrameError("batch numbers do not rise")
    elif isinstance(message, Hello):
        lanes = len(message.unacked) + len(message.acked) + len(message.acked_events)
        items = len(message.backends) + len(message.grains) + lanes
        if items > limits.HELLO_MAX_ITEMS:
            raise FrameError(f"hello has {items} items")
    elif isinstance(message, ApplyReport) and len(message.rules) > limits.RULES_MAX:
        raise FrameError(f"report has {len(message.rules)} rules")
