"""Behind a relay a node signs what it says and obeys what its master sealed; straight, nothing is added."""

import msgspec
import pytest
import zmq

from garrison.common import limits
from garrison.common.errors import FrameError
from garrison.common.frames import (
    ApplyReport,
    Assignment,
    Batch,
    ChunkRequest,
    Confirmed,
    Hello,
    Job,
    JobCancel,
    Ping,
    Refused,
    Welcome,
    decode_up,
    encode_frame,
)
from garrison.common.relay_frames import Sealed, Signed
from garrison.common.trust.pair import PairSecret, verify_signed
from garrison.minion.link.voice import DIRECT, RelayedVoice

NODE, MASTER, RELAY = (zmq.curve_keypair() for _ in range(3))
BATCH = Batch(epoch="ab", lane=0, seqs=[1], events=[b"x"])
REPORT = ApplyReport(generation=1, bundle="", state="applied")
JOB = Job(job="ab" * 16, argv=["true"])


@pytest.fixture
def voice():
    return RelayedVoice("n1", NODE[1], MASTER[0])


def sealed(message, *, by=MASTER, instance="life"):
    frame = encode_frame(message)
    return Sealed(frame=frame, seal=PairSecret(by[1], NODE[0]).seal("n1", instance, frame))


@pytest.mark.parametrize("message", [BATCH, REPORT])
def test_what_a_node_says_is_signed_as_the_bytes_that_the_master_gets(voice, message):
    hello = voice.said(Hello(node="n1"))

    said = voice.said(message)

    assert isinstance(said, Signed)
    verify_signed("n1", bytes.fromhex(hello.signing_key), said.frame, said.signature)
    assert decode_up(said.frame) == message
    PairSecret(MASTER[1], NODE[0]).check_vouch("n1", bytes.fromhex(hello.signing_key), bytes.fromhex(hello.vouch))


@pytest.mark.parametrize("message", [Ping(n=1), ChunkRequest(digest="ab")])
def test_what_is_for_the_relay_alone_goes_unsigned(voice, message):
    assert voice.said(message) == message


def test_message_that_would_not_fit_a_relays_own_is_too_large(voice):
    noise = bytes(range(256)) * 16
    events = [bytes(reversed(noise)) + n.to_bytes(4, "big") for n in range(2_000)]
    message = Batch(epoch="ab", lane=0, seqs=list(range(1, 2_001)), events=events)

    with pytest.raises(FrameError):
        voice.said(msgspec.structs.replace(message, events=[raw * 64 for raw in events]))


@pytest.mark.parametrize("message", [JOB, JobCancel(job="ab"), Confirmed(nonce="cd"), Refused(code="confirm")])
def test_command_counts_under_the_masters_seal(voice, message):
    assert voice.heard(sealed(message), "life") == message


@pytest.mark.parametrize("message", [JOB, JobCancel(job="ab"), Confirmed(nonce="cd")])
def test_command_without_a_seal_ends_the_connection(voice, message):
    with pytest.raises(FrameError, match="did not seal"):
        voice.heard(message, "life")


def test_command_under_another_seal_is_not_obeyed(voice):
    assert voice.heard(sealed(JOB, by=RELAY), "life") is None
    assert voice.heard(sealed(JOB, instance="earlier"), "life") is None
    tampered = msgspec.structs.replace(sealed(JOB), frame=encode_frame(Job(job="ab" * 16, argv=["false"])))
    assert voice.heard(tampered, "life") is None


@pytest.mark.parametrize("message", [Welcome(), Ping(), Assignment(assignment=b"")])
def test_only_commands_and_answers_are_sealed(voice, message):
    with pytest.raises(FrameError, match="a sealed"):
        voice.heard(sealed(message), "life")
    assert voice.heard(message, "life") == message


def test_refusal_of_the_relay_is_not_the_masters(voice):
    refusal = Refused(code="uplink", reason="cut off")

    assert voice.refuses_for_itself(refusal)
    assert not voice.refuses_for_itself(sealed(refusal))
    assert not DIRECT.refuses_for_itself(refusal)


def test_node_without_a_relay_takes_nothing_sealed():
    with pytest.raises(FrameError):
        DIRECT.heard(sealed(JOB), "life")
    assert DIRECT.said(Hello(node="n1")) == Hello(node="n1")
    assert limits.SIGNED_FRAME_MAX_BYTES < limits.FRAME_MAX_BYTES
