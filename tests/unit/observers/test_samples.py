"""Resource samples are true, bounded and survive parts of the system that cannot be read."""

import math
import os
import threading

import msgspec
import psutil
import pytest

from garrison.common import limits
from garrison.common.events import Event, Kind, Lane, encode_event
from garrison.minion.observers._pressure import parse_pressure, read_pressure
from garrison.minion.observers._sample import Sampler, _bounded
from garrison.minion.observers._worker import Stop, Worker
from garrison.minion.observers.resources import ResourceObserver
from garrison.minion.observers.self_health import KIND_SELF, SelfObserver, flatten


class Collector:
    """Takes events from any thread and waits for a count of them."""

    def __init__(self):
        self.events, self._changed = [], threading.Condition()

    def __call__(self, event):
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, count, timeout_s=10):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= count, timeout_s), self.events
            return self.events[:count]


@pytest.fixture
def collector():
    return Collector()


def test_first_sample_comes_at_once_and_holds_true_figures(collector):
    observer = ResourceObserver(3600)
    observer.start(collector)
    try:
        [event] = collector.wait(1)
    finally:
        observer.stop()

    data = event.data
    assert (event.lane, event.kind, data["source"]) == (Lane.METRIC, Kind.METRIC, "resources")
    assert data["mem_total_bytes"] == psutil.virtual_memory().total
    assert data["cpu_count"] == os.cpu_count()
    assert 0 <= data["cpu_percent"] <= 100
    assert data["disk./.total_bytes"] == os.statvfs("/").f_blocks * os.statvfs("/").f_frsize
    assert 0 < data["uptime_s"] < 10**9
    assert data["process_count"] >= 2
    assert observer.status().healthy
    encode_event(event)


def test_rates_are_in_the_second_sample_and_never_negative():
    sampler = Sampler()
    assert not [key for key in sampler.sample() if key.startswith("net.")]

    second = sampler.sample()

    assert all(value >= 0 and math.isfinite(value) for key, value in second.items() if key.startswith("net."))


def test_samples_go_on_at_the_interval(collector):
    observer = ResourceObserver(0.01)
    observer.start(collector)
    try:
        collector.wait(3)
    finally:
        observer.stop()

    assert observer.status().counters["samples"] >= 3


def test_stop_is_idempotent_and_harmless_before_start(collector):
    observer = ResourceObserver(1)
    observer.stop()
    observer.start(collector)
    observer.stop()
    observer.stop()

    assert "resources" not in {thread.name for thread in threading.enumerate()}


def test_more_figures_than_an_event_holds_are_counted_not_listed():
    figures = _bounded({f"disk./{n}.used_bytes": n for n in range(1000)})

    assert len(figures) < limits.EVENT_DATA_MAX_KEYS
    assert figures["figures_not_listed"] == 1000 - (len(figures) - 1)


def test_pressure_lines_are_read_and_nonsense_is_left_out():
    text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=7\nfull avg10=0.25 avg60=0 avg300=0 total=1\nodd avg10=9\nsome avg10=x\n"

    assert parse_pressure(text) == {"some_avg10": 1.5, "full_avg10": 0.25}
    assert parse_pressure("") == {}


def test_kernel_without_pressure_figures_gives_none(tmp_path):
    assert read_pressure(tmp_path) == {}


@pytest.mark.skipif(not os.path.exists("/proc/pressure/cpu"), reason="this kernel has no PSI")  # noqa: PTH110
def test_pressure_of_this_kernel_is_read():
    assert {"psi_cpu_some_avg10", "psi_memory_some_avg10", "psi_io_some_avg10"} <= set(read_pressure())


class Stats(msgspec.Struct):
    pending: dict[Lane, int]
    dropped: int
    disk_error: str = ""


def test_agent_reports_its_own_figures_and_those_of_the_spool(collector):
    observer = SelfObserver(3600, spool_stats=lambda: Stats({Lane.ALERT: 7}, 0))
    observer.start(collector)
    try:
        [event] = collector.wait(1)
    finally:
        observer.stop()

    assert (event.kind, event.lane) == (KIND_SELF, Lane.METRIC)
    assert event.data["spool.pending.alert"] == 7
    assert event.data["rss_bytes"] > 1 << 20
    assert event.data["fd_count"] > 2
    assert event.data["thread_count"] >= 2


def test_agent_without_a_spool_reports_all_the_same(collector):
    observer = SelfObserver(3600, spool_stats=lambda: None)
    observer.start(collector)
    try:
        [event] = collector.wait(1)
    finally:
        observer.stop()

    assert event.data["spool_lost"] == 0


def test_loss_of_events_raises_the_severity_of_the_next_report(collector):
    losses = iter([0, *[5] * 1000])
    observer = SelfObserver(0.01, spool_stats=lambda: Stats({}, next(losses)))
    observer.start(collector)
    try:
        first, second = collector.wait(2)
    finally:
        observer.stop()

    assert (first.severity, second.severity) == (1, 7)
    assert second.data["spool_lost"] == 5
    assert observer.status().counters["spool_lost"] == 5


def test_nested_figures_become_flat_and_fit_an_event():
    flat = flatten({"a": {"b": 1}, "c": [1, 2], "d": None, "e": {Lane.METRIC: 2}, "f": Stats({}, 3)})

    assert flat == {"a.b": 1, "c": 2, "d": None, "e.metric": 2, "f.dropped": 3, "f.disk_error": ""}
    encode_event(Event(data=flat))


def test_worker_that_fails_shows_why_and_is_tried_again(monkeypatch):
    monkeypatch.setattr("garrison.minion.observers._worker.RETRY_S", 0.0)
    calls, second = [], threading.Event()

    def body(stop):
        calls.append(1)
        if len(calls) == 1:
            raise OSError("the disk is gone")
        second.set()
        stop.wait(10)

    worker = Worker("observe-test", body)
    worker.start()
    assert second.wait(10)
    assert worker.error == "OSError: the disk is gone"
    worker.works()
    worker.stop()

    assert (worker.error, worker.restarts) == ("", 1)


def test_stop_wakes_a_waiter_on_a_descriptor():
    stop, (reader, writer) = Stop(), os.pipe()
    threading.Timer(0.01, stop.set).start()

    assert stop.wait_for(reader, 30) is False
    os.write(writer, b"x")
    assert stop.wait_for(reader, 30) is False
    os.close(reader)
    os.close(writer)
    stop.close()
