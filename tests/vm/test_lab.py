"""What the lab promises to every other test in this folder, each with a control: a dead lab must not look like a passing test."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vm.lab import BENCH, K61, K612, PREEMPT_FULL, SELINUX, Lab, Machine, VmError, VmTimeoutError
from vm.payload import CHECKOUT

pytestmark = pytest.mark.long

KERNELS = [pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")]

# Denies syslog(2) to everybody: a hook that nothing in an idle guest uses, so the VM stays usable.
DENY_SYSLOG = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

SEC("lsm/syslog") int deny_syslog(void *ctx) { return -1; }
char LICENSE[] SEC("license") = "GPL";
"""

CUT = """
table inet cut {
  chain inbound { type filter hook input priority 0; iifname eth1 drop; }
}
"""

# Prints what syslog(SYSLOG_ACTION_SIZE_BUFFER) gives before, while and after the program is attached: -1 is a denial.
ATTACH = """
import ctypes, sys
bpf, libc = ctypes.CDLL("libbpf.so.1", use_errno=True), ctypes.CDLL(None, use_errno=True)
def call(name, *args, pointer=True):
    function = getattr(bpf, name)
    function.restype = ctypes.c_void_p if pointer else ctypes.c_int
    value = function(*args)
    if (pointer and not value) or (not pointer and value):
        sys.exit(f"{name}: errno {ctypes.get_errno()}")
    return ctypes.c_void_p(value)
def denied():
    return libc.klogctl(10, None, 0) == -1 and ctypes.get_errno() == 1
before = denied()
loaded = call("bpf_object__open_file", sys.argv[1].encode(), None)
call("bpf_object__load", loaded, pointer=False)
link = call("bpf_program__attach", call("bpf_object__next_program", loaded, None))
during = denied()
call("bpf_link__destroy", link, pointer=False)
print(before, during, denied())
"""


def test_command_gives_its_exit_code_output_and_input(lab: Lab) -> None:
    vm = lab.boot()

    done = vm.run("sh", "-c", "cat; echo problem >&2; exit 7", stdin="ünïcode\n")

    assert (done.returncode, done.stdout, done.stderr) == (7, "ünïcode\n", "problem\n")
    assert vm.run("sh", "-c", "kill -9 $$").returncode == -9
    with pytest.raises(VmError, match="No such file"):
        vm.run("no-such-program")
    assert vm.check("id", "-un") == "root\n"


def test_command_that_hangs_is_killed_and_the_next_one_runs(lab: Lab) -> None:
    vm = lab.boot()

    with pytest.raises(VmTimeoutError, match="so far"):
        vm.run("sh", "-c", "echo so far; sleep 1000", timeout_s=1)

    assert vm.run("pgrep", "-f", "sleep 1000").returncode == 1
    assert vm.run("sh", "-c", "sleep 1000 & echo started").stdout == "started\n", "a daemon must not hold back the answer"


def test_background_process_is_told_from_a_finished_one(lab: Lab) -> None:
    vm = lab.boot()

    process = vm.start("sh", "-c", "echo begun; sleep 1000", log="/tmp/log")
    vm.until(lambda: process.output() == "begun\n", "its output")

    assert process.running()
    process.kill()
    assert process.wait() == -9
    assert vm.start("sh", "-c", "exit 3", log="/tmp/log").wait() == 3


def test_files_go_in_and_out_unchanged(lab: Lab) -> None:
    vm = lab.boot()
    data = bytes(range(256)) * 8192

    vm.put("/opt/new/folder/data", data, mode=0o600)

    assert vm.get("/opt/new/folder/data") == data
    assert vm.check("stat", "-c", "%a %u", "/opt/new/folder/data") == "600 0\n"


def test_clones_have_their_own_name_clock_and_randomness(lab: Lab) -> None:
    vms = [lab.boot("one"), lab.boot("two")]

    seen = [
        vm.check("sh", "-c", "hostname; cat /etc/machine-id; head -c 16 /dev/urandom | od -An -tx1").splitlines() for vm in vms
    ]
    clocks = [int(vm.check("date", "+%s")) for vm in vms]

    assert [rows[0] for rows in seen] == ["one", "two"]
    assert all(a != b for a, b in zip(*seen, strict=True))
    now = int(subprocess.run(["date", "+%s"], check=True, capture_output=True, text=True).stdout)
    assert all(0 <= now - clock < 60 for clock in clocks)


@pytest.mark.parametrize("machine", KERNELS)
def test_kernel_is_the_one_asked_for_with_bpf_lsm_and_btf(lab: Lab, machine: Machine) -> None:
    vm = lab.boot(machine=machine)

    assert vm.check("uname", "-r").startswith(f"{machine.kernel}.")
    assert "bpf" in vm.check("cat", "/sys/kernel/security/lsm").split(",")
    assert int(vm.check("stat", "-c", "%s", "/sys/kernel/btf/vmlinux")) > 1_000_000


@pytest.mark.parametrize("machine", KERNELS)
def test_bpf_lsm_program_denies_while_attached_and_only_then(lab: Lab, machine: Machine, tmp_path: Path) -> None:
    source, built = tmp_path / "deny_syslog.bpf.c", tmp_path / "deny_syslog.bpf.o"
    source.write_text(DENY_SYSLOG)
    subprocess.run(
        ["clang-14", "-g", "-O2", "-target", "bpf", "-I/usr/include/x86_64-linux-gnu", "-c", str(source), "-o", str(built)],
        check=True,
    )
    vm = lab.boot(machine=machine)
    vm.put("/root/deny.bpf.o", built.read_bytes())

    done = vm.run("python3", "-", "/root/deny.bpf.o", stdin=ATTACH)

    assert (done.returncode, done.stdout) == (0, "False True False\n"), done.stderr


def test_kernel_preempts_fully_when_asked(lab: Lab) -> None:
    default, full = lab.boot("default"), lab.boot("full", PREEMPT_FULL)

    assert "(full)" not in default.check("cat", "/sys/kernel/debug/sched/preempt")
    assert "(full)" in full.check("cat", "/sys/kernel/debug/sched/preempt")


def test_selinux_takes_the_place_of_apparmor_when_asked_and_refuses_nothing(lab: Lab) -> None:
    vm = lab.boot("selinux", SELINUX)

    modules = vm.check("cat", "/sys/kernel/security/lsm").strip().split(",")
    assert {"selinux", "bpf"} <= set(modules)
    assert "apparmor" not in modules
    assert vm.check("cat", "/proc/self/attr/current").startswith("kernel"), "without a policy everything is the kernel's"
    vm.run("mount", "-t", "selinuxfs", "selinuxfs", "/sys/fs/selinux")
    assert vm.check("cat", "/sys/fs/selinux/enforce") == "0"
    assert vm.run("cat", "/etc/hostname").returncode == 0


def test_code_in_the_guest_is_the_built_wheel(lab: Lab) -> None:
    vm = lab.boot()

    code = "import importlib.metadata as m; print(m.distribution('garrison').locate_file(''))"
    assert vm.check("python3", "-c", code).strip() == "/opt/garrison"
    assert "garrison/minion/agent.py" in vm.check("sh", "-c", "cat /opt/garrison/garrison-*.dist-info/RECORD")
    assert vm.run("test", "-x", "/opt/garrison/garrison/minion/enforcers/fanotify/responder").returncode == 0


def test_vms_on_one_segment_reach_each_other_and_others_do_not(lab: Lab) -> None:
    segment, elsewhere = lab.segment(), lab.segment()
    one, two, other = lab.boot("one", on=segment), lab.boot("two", on=segment), lab.boot("other", on=elsewhere)

    assert one.run("ping", "-c1", "-W20", two.address).returncode == 0
    assert two.run("ping", "-c1", "-W20", one.address).returncode == 0
    assert other.run("ping", "-c1", "-W2", one.address).returncode == 1


def test_partition_cuts_two_vms_but_not_the_lab_off(lab: Lab) -> None:
    segment = lab.segment()
    one, two = lab.boot("one", on=segment), lab.boot("two", on=segment)
    assert one.run("ping", "-c1", "-W20", two.address).returncode == 0

    one.check("nft", "-f", "-", stdin=CUT)

    assert one.run("ping", "-c1", "-W2", two.address).returncode == 1
    one.check("nft", "delete", "table", "inet", "cut")
    assert one.run("ping", "-c1", "-W20", two.address).returncode == 0


def test_guest_reaches_nothing_unless_asked(lab: Lab) -> None:
    probe = ["python3", "-c", "import socket, sys; socket.create_connection(('10.0.2.2', int(sys.argv[1])), 20)"]
    with_host, without = lab.boot("with", reach_host=True), lab.boot("without")
    port = str(with_host.ssh_port())  # something that listens on this machine's loopback

    assert with_host.run(*probe, port).returncode == 0
    assert without.run(*probe, port).returncode == 1


def test_reboot_boots_for_real_and_keeps_the_disk(lab: Lab) -> None:
    vm = lab.boot("phoenix")
    boot = vm.get("/proc/sys/kernel/random/boot_id")
    vm.check("sh", "-c", "echo kept >/root/kept; echo gone >/run/gone")

    vm.reboot(K612)

    assert vm.get("/proc/sys/kernel/random/boot_id") != boot
    assert vm.check("sh", "-c", "cat /root/kept; ls /run/gone 2>&1; uname -r; hostname").splitlines()[0] == "kept"
    assert vm.run("test", "-e", "/run/gone").returncode == 1
    assert vm.check("uname", "-r").startswith("6.12.")
    assert vm.run("garrison", "--version").returncode == 0


def test_power_cut_loses_what_was_not_synced_and_nothing_else(lab: Lab) -> None:
    vm = lab.boot()
    vm.check("python3", "-c", "import os; f = open('/root/synced', 'w'); f.write('x' * 9999); f.flush(); os.fsync(f.fileno())")
    vm.check("sh", "-c", "echo unsynced >/root/unsynced")
    assert vm.check("cat", "/root/unsynced") == "unsynced\n"

    vm.cut_power()
    vm.power_on()

    assert vm.check("cat", "/root/synced") == "x" * 9999
    assert vm.run("test", "-s", "/root/unsynced").returncode == 1


def test_command_in_a_dead_vm_is_an_error_with_its_console(lab: Lab) -> None:
    vm = lab.boot()

    with pytest.raises(VmError, match="the VM ended"):
        vm.run("sh", "-c", "echo c >/proc/sysrq-trigger; sleep 100")

    assert "sysrq triggered crash" in vm.console_end(100)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_vm_ends_with_a_test_process_that_was_killed(tmp_path: Path) -> None:
    script = "from vm.lab import Lab; lab = Lab(); print(lab.boot()._qemu.process.pid, flush=True); input()"
    env = {**os.environ, "PYTHONPATH": f"{CHECKOUT / 'tests'}:{CHECKOUT / 'dev.d'}", "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", script], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert running(pid)
        process.kill()

    deadline = time.monotonic() + 30
    while running(pid):
        assert time.monotonic() < deadline, "QEMU outlived the process that started it"
        time.sleep(0.05)


def test_garrison_of_this_checkout_runs_in_the_guest(lab: Lab) -> None:
    vm = lab.boot()

    assert vm.check("garrison", "--version").startswith("garrison, version")
    assert (
        vm.check("python3", "-c", "import garrison.common.events as e; print(e.__file__)")
        == "/opt/garrison/garrison/common/events.py\n"
    )


def test_users_get_in_by_ssh(lab: Lab) -> None:
    vm = lab.boot()

    done = subprocess.run(vm.ssh_argv("id", "-un", user="alice"), check=False, capture_output=True, text=True, timeout=120)

    assert (done.returncode, done.stdout) == (0, "alice\n"), done.stderr


def test_systemd_guest_runs_units(lab: Lab) -> None:
    vm = lab.boot(machine=Machine("6.1"))

    assert vm.check("cat", "/proc/1/comm") == "systemd\n"
    assert vm.check("systemctl", "is-active", "dbus", "ssh") == "active\nactive\n"
    assert vm.check("systemctl", "--failed", "--plain", "--no-legend") == ""


def test_bench_machine_counts_instructions_so_runs_repeat(lab: Lab, tmp_path: Path) -> None:
    source, built = tmp_path / "loop.c", tmp_path / "loop"
    source.write_text(LOOP)
    subprocess.run(["gcc", "-O1", "-static", str(source), "-o", str(built)], check=True)
    figures = []
    for _ in range(2):
        vm = lab.boot(machine=BENCH)
        vm.put("/root/loop", built.read_bytes(), mode=0o755)
        figures.append(float(vm.check("/root/loop", "5000", timeout_s=300)))

    assert figures[0] == pytest.approx(figures[1], rel=0.002)


# Prints the guest's nanoseconds per open+close, the least of seven rounds.
LOOP = r"""
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec; }

int main(int argc, char **argv) {
  int rounds = atoi(argv[1]);
  double least = 1e18;
  struct sched_param fifo = {.sched_priority = 50};
  mlockall(MCL_CURRENT);
  if (sched_setscheduler(0, SCHED_FIFO, &fifo)) return 1;
  for (int repeat = 0; repeat < 7; repeat++) {
    double began = now();
    for (int i = 0; i < rounds; i++) close(open("/etc/hostname", O_RDONLY));
    double each = (now() - began) / rounds;
    if (each < least) least = each;
  }
  printf("%.2f\n", least);
}
"""
