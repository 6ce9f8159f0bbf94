"""What a signature adds to a batch on its way through a relay, beside the work that a batch is anyway."""

from __future__ import annotations

import time

import zmq

from fakes.peer import batch_of
from garrison.common.frames import decode_up, encode_frame
from garrison.common.trust.pair import NodeSigner, PairSecret, verify_signed

SIZES, ROUNDS = (1, 100, 2_000), 50


def run() -> dict:
    """Encode, sign, verify and decode batches of three sizes."""
    figures: dict[str, float] = {}
    master, node = zmq.curve_keypair(), zmq.curve_keypair()
    signer, pair = NodeSigner("n1", node[1]), PairSecret(master[1], node[0])
    figures["pair_once_us"] = _us(lambda: PairSecret(master[1], node[0]), 1)
    figures["seal_us"] = _us(lambda: pair.seal("n1", "life", b"x" * 200), 1)
    for size in SIZES:
        batch = batch_of(list(range(1, size + 1)), policy="no-tmp-exec", rule="no-tmp-exec/0123456789ab")
        frame = encode_frame(batch)
        signature = signer.sign(frame)
        codec = _us(lambda batch=batch, frame=frame: (encode_frame(batch), decode_up(frame)), size)
        sign = _us(lambda frame=frame: signer.sign(frame), size)
        verify = _us(lambda frame=frame, s=signature: verify_signed("n1", signer.public_key, frame, s), size)
        figures[f"events_{size}_codec_us_per_event"] = codec
        figures[f"events_{size}_sign_us_per_event"] = sign
        figures[f"events_{size}_verify_us_per_event"] = verify
        figures[f"events_{size}_signing_vs_codec"] = round((sign + verify) / codec, 2)
    return figures


def _us(work, parts: int) -> float:
    work()
    started = time.perf_counter()
    for _ in range(ROUNDS):
        work()
    return round((time.perf_counter() - started) / ROUNDS / parts * 1e6, 3)
