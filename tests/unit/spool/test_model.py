"""The spool against an oracle: whatever happens, every event comes out exactly once or is counted in a gap."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from garrison.common import limits
from garrison.common.events import Event, Kind, Lane, decode_event
from garrison.minion.spool import Spool, SpoolCaps

CAPS = SpoolCaps.of_total(256 << 10)


class SpoolMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self):
        self.work = Path(tempfile.mkdtemp(prefix="spool-model-"))
        self.lives = 0
        self.put_count = dict.fromkeys(Lane, 0)
        self.stored: dict[tuple[str, int], bytes] = {}  # what the master has, by identity
        self.by_lane = {lane: [] for lane in Lane}
        self.highest = 0
        self.spool = self.open()

    def open(self):
        return Spool.open(self.work / str(self.lives), CAPS, boot="boot")

    @rule(lane=st.sampled_from(Lane), count=st.integers(1, 300), size=st.integers(0, 900))
    def put(self, lane, count, size):
        for _ in range(count):
            self.put_count[lane] += 1
            number = self.put_count[lane]
            self.spool.put(Event(lane=lane, kind="exec", boot="boot", data={"n": number, "pad": "x" * size}))

    @rule()
    def flush(self):
        assert self.spool.flush(20)

    @rule(lane=st.sampled_from(Lane), max_events=st.integers(1, 400), twice=st.booleans())
    def deliver(self, lane, max_events, twice):
        # Settled first: what overflows between its reading and its ack is counted as lost although it arrives (docs/link.md).
        assert self.spool.flush(20)
        for _ in range(1 + twice):
            batch = self.spool.next_batch(lane, 0, max_events, 64 << 10)
            if batch is None:
                return
            self.receive(lane, batch)
        self.spool.ack(batch.epoch, lane, batch.seqs[-1])
        assert self.spool.flush(20)

    def receive(self, lane, batch):
        for seq, raw in zip(batch.seqs, batch.events, strict=True):
            known = self.stored.setdefault((batch.epoch, seq), raw)
            assert known == raw, "a number means one event for ever"
            if (batch.epoch, seq) not in self.by_lane[lane]:
                self.by_lane[lane].append((batch.epoch, seq))

    @rule()
    def reopen(self):
        self.spool.close()
        self.spool = self.open()

    @rule()
    def crash(self):
        """The files as they are now, in another place: what kill -9 leaves."""
        assert self.spool.flush(20)
        self.lives += 1
        shutil.copytree(self.work / str(self.lives - 1), self.work / str(self.lives))
        self.spool.close()
        shutil.rmtree(self.work / str(self.lives - 1))
        self.spool = self.open()

    @invariant()
    def numbers_only_rise_and_the_cap_holds(self):
        if not hasattr(self, "spool"):
            return
        assert self.spool.next_seq >= self.highest
        self.highest = self.spool.next_seq
        assert sum(self.spool.stats().bytes.values()) <= CAPS.total_bytes + limits.SPOOL_SEGMENT_MAX_BYTES

    def teardown(self):
        if not hasattr(self, "spool"):
            return
        try:
            assert self.spool.flush(20)
            for lane in Lane:
                self.drain(lane)
            for lane in Lane:
                self.account(lane)
        finally:
            self.spool.close()
            shutil.rmtree(self.work, ignore_errors=True)

    def drain(self, lane):
        after = 0
        while batch := self.spool.next_batch(lane, after, 1000, 1 << 20):
            self.receive(lane, batch)
            after = batch.seqs[-1]

    def account(self, lane):
        events = [decode_event(self.stored[identity]) for identity in self.by_lane[lane]]
        numbers = [event.data["n"] for event in events if event.kind != Kind.GAP]
        gaps = [event.data for event in events if event.kind == Kind.GAP]
        assert numbers == sorted(set(numbers)), "each once, in order"
        assert len(numbers) + sum(gap["count"] for gap in gaps) == self.put_count[lane]
        for (_, seq), event in zip(self.by_lane[lane], events, strict=True):
            if event.kind == Kind.GAP:
                assert 0 < event.data["first_seq"] <= event.data["last_seq"] < seq
                held = sum(event.data["first_seq"] <= other <= event.data["last_seq"] for _, other in self.by_lane[lane])
                assert event.data["count"] + held <= event.data["last_seq"] - event.data["first_seq"] + 1


TestSpoolModel = SpoolMachine.TestCase
TestSpoolModel.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
