"""The loader against the real kernel and libbpf: every function it declares is called here or by the programs' own tests."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from garrison.bpf.cgroups import cgroup2_root
from garrison.bpf.loader import NOEXIST, BpfMap, MapType, Object, enabled_stats, object_path, open_pinned_map
from garrison.bpf.pathhash import PathHasher
from garrison.bpf.pinned import attach_pinned, pin_program
from garrison.bpf.ring import RingReader
from garrison.common.errors import CompileError, KernelError

pytestmark = pytest.mark.root


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def u64(number: int) -> bytes:
    return struct.pack("=Q", number)


@pytest.fixture
def numbers() -> Iterator[BpfMap]:
    made = BpfMap.create(MapType.HASH, 4, 8, 4, name="numbers")
    yield made
    made.close()
    made.close()


@pytest.fixture
def bpffs(tmp_path) -> Iterator[Path]:
    place = tmp_path / "bpf"
    place.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_map_keeps_gives_back_and_forgets(numbers):
    numbers.update(u32(1), u64(10))
    numbers.update(u32(1), u64(11))
    numbers.update_batch({u32(2): u64(20), u32(3): u64(30)})

    assert numbers.lookup(u32(1)) == u64(11)
    assert numbers.lookup(u32(9)) is None
    assert sorted(numbers.keys()) == [u32(1), u32(2), u32(3)]
    assert (numbers.delete(u32(1)), numbers.delete(u32(1))) == (True, False)
    numbers.delete_batch([u32(2), u32(3)])
    assert list(numbers.keys()) == []
    numbers.update_batch({})


def test_full_map_and_taken_key_are_errors_of_the_kernel(numbers):
    for key in range(4):
        numbers.update(u32(key), u64(0))

    with pytest.raises(KernelError, match="update map numbers"):
        numbers.update(u32(4), u64(0))
    with pytest.raises(KernelError):
        numbers.update(u32(1), u64(0), NOEXIST)


@pytest.mark.parametrize(("key", "value"), [(b"\0", bytes(8)), (bytes(4), b"\0")])
def test_wrong_sizes_never_reach_the_kernel(numbers, key, value):
    with pytest.raises(ValueError, match="bytes"):
        numbers.update(key, value)
    with pytest.raises(ValueError, match="bytes"):
        numbers.update_batch({key: value})


def test_closed_map_is_an_error_and_not_another_file(numbers):
    numbers.close()

    for call in (lambda: numbers.lookup(u32(1)), lambda: numbers.delete(u32(1)), lambda: numbers.update(u32(1), u64(1))):
        with pytest.raises(KernelError):
            call()


def test_object_that_is_none_and_object_that_was_not_built_are_told():
    with pytest.raises(KernelError, match="open object"):
        Object(b"not an ELF file")
    with pytest.raises(CompileError, match=r"nothing\.bpf\.o is missing"):
        object_path("nothing")


_WRONG = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1); __type(key, __u32); __type(value, __u32); } some SEC(".maps");
SEC("raw_tp/sys_enter") int wrong(void *ctx) { __u32 key = 0, *v = bpf_map_lookup_elem(&some, &key); return *v; }
char LICENSE[] SEC("license") = "GPL";
"""


def test_refused_program_comes_with_the_verifiers_words(tmp_path):
    clang, arch = os.environ.get("CLANG", "clang-14"), subprocess.check_output(["gcc", "-print-multiarch"], text=True).strip()
    (tmp_path / "wrong.c").write_text(_WRONG)
    flags = ["-g", "-O2", "-target", "bpf", "-idirafter", f"/usr/include/{arch}"]
    subprocess.run([clang, *flags, "-c", tmp_path / "wrong.c", "-o", tmp_path / "wrong.o"], check=True)

    with Object(tmp_path / "wrong.o") as made, pytest.raises(KernelError, match=r"load wrong\.o") as caught:
        made.load()

    assert "map_value_or_null" in caught.value.hint


def test_rodata_is_set_by_name_and_checked():
    with Object(object_path("cgroup_net")) as made:
        with pytest.raises(KeyError):
            made.set_rodata({"no_such_variable": b""})
        with pytest.raises(ValueError, match="takes 16 bytes"):
            made.set_rodata({"hash_key": b"short"})
        made.set_rodata(PathHasher(bytes(24)).rodata)
        with pytest.raises(KeyError, match="no program nothing"):
            made.autoload(["nothing"])


def test_subset_is_loaded_run_attached_and_measured():
    seen, got = list[bytes](), threading.Event()
    with Object(object_path("exec_feed")) as made, enabled_stats():
        made.autoload(["note_agent", "feed_exec"])
        made.load()
        assert made.programs["note_agent"].run() == 0
        with pytest.raises(KernelError):
            made.programs["feed_exit"].attach()
        reader = RingReader(made.maps["records"], lambda raw: (seen.append(raw), got.set()), name="test")
        link = made.programs["feed_exec"].attach()
        assert link.fd > 0
        subprocess.run(["/usr/bin/true"], check=True)
        assert got.wait(10)
        ns, runs = made.programs["feed_exec"].run_stats()
        reader.close()
        reader.close()

    assert (runs >= 1, ns > 0) == (True, True)
    assert made.programs["feed_exec"].name == "feed_exec"
    made.close()


def test_taker_that_fails_is_counted_and_the_reader_goes_on():
    calls, again = list[bytes](), threading.Event()

    def take(raw: bytes) -> None:
        calls.append(raw)
        if len(calls) > 1:
            again.set()
        raise RuntimeError("of the test")

    with Object(object_path("exec_feed")) as made:
        made.load()
        made.programs["note_agent"].run()
        reader = RingReader(made.maps["records"], take, name="test")
        made.programs["feed_exec"].attach()
        subprocess.run(["sh", "-c", "/usr/bin/true; /usr/bin/true"], check=True)
        assert again.wait(10)
        made.detach()
        reader.close()

    assert reader.failed == len(calls)


def test_pinned_link_and_map_outlive_the_object_until_unpinned(bpffs):
    made = Object(object_path("exec_feed")).load()
    made.programs["note_agent"].run()
    link = made.programs["feed_exec"].attach()
    link.pin(bpffs / "link")
    made.pin_map("counters", bpffs / "counters")
    made.close()

    counters = open_pinned_map(bpffs / "counters")
    before = counters.lookup_sum(u32(0))
    subprocess.run(["/usr/bin/true"], check=True)
    after = counters.lookup_sum(u32(0))
    counters.close()
    (bpffs / "link").unlink()

    assert after > before, "it goes on counting without its loader"
    with pytest.raises(KernelError, match="open"):
        open_pinned_map(bpffs / "nothing")


def test_unpinning_takes_the_names_away(bpffs):
    with Object(object_path("exec_feed")) as made:
        made.load()
        link = made.programs["feed_exec"].attach()
        link.pin(bpffs / "link")
        made.pin_map("counters", bpffs / "counters")

        link.unpin()
        made.unpin_map("counters", bpffs / "counters")

        assert {path.name for path in bpffs.iterdir()} <= {"maps.debug", "progs.debug"}  # the kernel's own


def test_pinned_program_is_attached_as_often_as_its_link_was_removed_and_no_longer(bpffs):
    with Object(object_path("protect")) as made, enabled_stats():
        made.autoload(["watch_exit"])
        made.load()
        pin_program(made.programs["watch_exit"], bpffs / "program")

        def runs() -> int:
            before = made.programs["watch_exit"].run_stats()[1]
            subprocess.run(["/usr/bin/true"], check=True)
            return made.programs["watch_exit"].run_stats()[1] - before

        assert runs() == 0
        for _ in range(10):  # at once: the kernel need not have detached it yet
            attach_pinned(bpffs / "program", bpffs / "link")
            assert runs() > 0
            (bpffs / "link").unlink()
        _wait_for(lambda: runs() == 0)

        with pytest.raises(KernelError, match=r"open .*/nothing"):
            attach_pinned(bpffs / "nothing", bpffs / "link")
        (bpffs / "taken").mkdir()
        with pytest.raises(KernelError, match="pin program at"):
            attach_pinned(bpffs / "program", bpffs / "taken")
        _wait_for(lambda: runs() == 0)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_pinned_program_on_packets_is_attached_to_a_cgroup(bpffs):
    with Object(object_path("enforce_dns")) as made, enabled_stats(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        made.autoload(["egress_query"])
        made.load()
        egress = made.programs["egress_query"]
        pin_program(egress, bpffs / "program")
        sender.sendto(b"x", ("127.0.0.1", 9))
        assert egress.run_stats()[1] == 0

        attach_pinned(bpffs / "program", bpffs / "link", cgroup=cgroup2_root())
        sender.sendto(b"x", ("127.0.0.1", 9))
        (bpffs / "link").unlink()

        assert egress.run_stats()[1] > 0
