"""The rows of `garrison top` come from what nodes really send, worst first, and nonsense from a node breaks nothing."""

import time

from hypothesis import given
from hypothesis import strategies as st

from garrison.cli._usage import Usage, sort_worst_first, usage_of, usages
from garrison.minion.observers._sample import Sampler


def test_real_sample_becomes_a_complete_row():
    sampler = Sampler()
    sampler.sample()
    event = {"node": "edge-1", "ts": time.time_ns(), "data": {"source": "resources", **sampler.sample()}}

    [row] = usages([{"name": "edge-1", "state": "online"}], [event])

    assert 0 <= row.cpu_percent <= 100
    assert 0 < row.mem_percent <= 100
    assert 0 < row.disk_percent <= 100
    assert row.disk_mount.startswith("/")
    assert row.age_s < 60


def test_node_without_a_sample_is_shown_and_a_retired_one_is_not():
    rows = usages([{"name": "a", "state": "offline"}, {"name": "b", "state": "retired"}], [])

    assert rows == [Usage(name="a", state="offline")]


def test_worst_come_first():
    rows = [
        Usage(name="calm", state="online", cpu_percent=3.0),
        Usage(name="full", state="online", cpu_percent=1.0, disk_percent=99.0),
        Usage(name="gone", state="offline"),
        Usage(name="slow", state="late", cpu_percent=1.0),
    ]

    assert [row.name for row in sort_worst_first(rows)] == ["gone", "slow", "full", "calm"]


def test_sample_of_the_future_has_no_negative_age():
    assert usage_of("a", "online", {"ts": 10**18, "data": {}}, 0).age_s == 0


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)
keys = st.sampled_from(
    [
        "cpu_percent",
        "cpu_count",
        "load_1m",
        "mem_total_bytes",
        "mem_available_bytes",
        "disk./.used_bytes",
        "disk./.total_bytes",
        "psi_io_some_avg10",
        "net.eth0.rx_bytes_per_s",
    ]
)


@given(st.dictionaries(keys, scalars) | scalars, scalars)
def test_any_sample_becomes_a_row(data, ts):
    usage_of("a", "online", {"data": data, "ts": ts}, 0)
