"""What goes wrong in the field: every time a clear error, nothing lost, and the old policy still enforced."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

SECRET = ("/usr/bin/cat", "/etc/secret/api.key")


def refused(host) -> bool:
    """Whether the demo policy's protected file is refused on ``host``."""
    done = host.run(*SECRET)
    return done.returncode != 0 and "Operation not permitted" in done.stderr


def markers(fleet, prefix: str) -> list[str]:
    """Arguments with ``prefix`` among all stored commands, with repeats."""
    return [a for e in fleet.events("--kind", "exec") for a in e["actor"].get("args", ()) if a.startswith(prefix)]


def observing(fleet, host) -> bool:
    """Whether the agent of ``host`` runs and sees commands: it enforces before it observes."""
    status = fleet.minion_status(host)
    return status["running"] and any(part["name"] == "shell" and part["healthy"] for part in status["observers"])


def make_markers(host, prefix: str, count: int) -> None:
    loop = f"i=0; while [ $i -lt {count} ]; do i=$((i+1)); /usr/bin/printf '' {prefix}$i; done"
    assert host.run("/usr/bin/bash", "-c", loop).returncode == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("policies: [\n", "top.yml:"),
        ("policies:\n- files: [policies/demo/*.yaml]\n  hosts: edge\n  moed: audit\n", "moed"),
        ("policies:\n- files: [policies/nosuch/*.yaml]\n  hosts: edge\n", "nosuch"),
        ("policies:\n- files: [policies/demo/*.yaml]\n  hosts: nosuchgroup\n", "nosuchgroup"),
    ],
    ids=["broken-yaml", "unknown-key", "no-such-file", "no-such-host"],
)
def test_broken_states_are_refused_with_their_place_and_change_nothing(make_fleet, tmp_path, text, says):
    fleet = make_fleet(1)
    states = tmp_path / "states"
    shutil.copytree(fleet.states, states)
    (states / "top.yml").write_text(text)

    done = fleet.apply(states=states, ok=(1, 2))

    assert says in done.stderr
    assert fleet.nodes()["edge-1"]["assigned_generation"] == 0


def test_broken_policy_is_refused_with_file_line_and_key(make_fleet, tmp_path):
    fleet = make_fleet(1)
    states = tmp_path / "states"
    shutil.copytree(fleet.states, states)
    victim = min((states / "policies" / "demo").glob("*.yaml"))
    victim.write_text(victim.read_text().replace("spec:", "spec:\n  proces: {}", 1))

    done = fleet.apply(states=states, ok=(1, 2))

    assert victim.name in done.stderr
    assert "proces" in done.stderr
    assert fleet.nodes()["edge-1"]["assigned_generation"] == 0


def test_minion_killed_without_a_master_comes_back_enforcing_and_loses_no_committed_event(make_fleet):
    fleet = make_fleet(1)
    host = fleet.fabric.hosts["edge-1"]
    fleet.apply("--wait", "30", "--limit", "edge-1", ok=(0, 6))
    fleet.end_master(signal.SIGKILL)

    make_markers(host, "before-kill-", 50)
    # Each command is a start and an end; what is not yet in the spool dies with the process, and nothing was promised for it.
    fleet.until(lambda: fleet.minion_status(host)["unacked"].get("shell", 0) >= 100, "events are in the spool")
    fleet.end_minion(host, signal.SIGKILL)
    assert host.run(*SECRET).returncode == 0, "fail-open and documented: fanotify ends with the agent"
    fleet.start_minion(host)
    fleet.until(lambda: refused(host), "the last good policy is enforced again with no master")
    fleet.until(lambda: observing(fleet, host), "commands are seen again")
    make_markers(host, "after-kill-", 50)
    fleet.start_master()

    found = fleet.until(
        lambda: m if len(set(m := markers(fleet, "before-kill-") + markers(fleet, "after-kill-"))) == 100 else [],
        "all arrive",
        60,
    )
    assert len(found) == 100, "each once"


def test_master_killed_while_events_flow_ends_with_every_event_once(make_fleet):
    fleet = make_fleet(1)
    host = fleet.fabric.hosts["edge-1"]
    loop = "i=0; while [ $i -lt 600 ]; do i=$((i+1)); /usr/bin/printf '' flow-$i; done"
    writer = subprocess.Popen(host.argv(["/usr/bin/bash", "-c", loop]))
    for _ in range(3):
        seen = len(markers(fleet, "flow-"))
        fleet.until(lambda seen=seen: len(markers(fleet, "flow-")) > seen or writer.poll() is not None, "some arrive", 60)
        fleet.end_master(signal.SIGKILL)
        fleet.start_master()

    assert writer.wait(timeout=60) == 0
    found = fleet.until(lambda: m if len(set(m := markers(fleet, "flow-"))) == 600 else [], "all arrive", 60)
    assert len(found) == 600
    assert fleet.events("--kind", "gap") == []


def test_garbage_and_oversize_on_the_port_leave_the_master_serving(make_fleet):
    fleet = make_fleet(1)
    script = (
        "import os, socket\n"
        "zmtp = b'\\xff' + bytes(8) + b'\\x7f\\x03\\x01CURVE' + bytes(4096)\n"
        "for data in (b'GET / HTTP/1.1\\r\\n\\r\\n', os.urandom(4096), zmtp):\n"
        f"    s = socket.create_connection(('{fleet.fabric.gateway}', 4515), 5)\n"
        "    s.sendall(data)\n"
        "    s.close()\n"
    )
    for _ in range(20):
        subprocess.run(fleet.fabric.argv(["python3", "-c", script]), check=True, timeout=30)

    assert fleet.cli("run", "edge-1", "--", "hostname").stdout.count("edge-1") >= 1
    assert fleet.nodes()["edge-1"]["state"] == "online"


def test_second_minion_with_the_same_key_is_refused_and_the_first_goes_on(make_fleet):
    fleet = make_fleet(1)
    first, second = fleet.fabric.hosts["edge-1"], fleet.fabric.host("edge-2")
    shutil.copytree(
        first.path("/var/lib/garrison/minion"), second.path("/var/lib/garrison/minion"), ignore=shutil.ignore_patterns("spool")
    )
    fleet.start_minion(second, node='"edge-1"')

    fleet.until(lambda: "clone" in fleet.minion_status(second).get("link", ""), "the clone is told")

    assert fleet.cli("run", "edge-1", "--", "hostname").stdout.count("edge-1") >= 1


def test_minion_with_the_wrong_master_key_says_so(make_fleet):
    fleet = make_fleet(0)
    host = fleet.fabric.host("edge-1")
    other = fleet.work / "other"
    fleet.cli("init", "--dir", str(other), "--keys", str(fleet.work / "other-keys"), "--advertise", fleet.endpoint)
    genuine = fleet.directory / "join.json"
    genuine.write_text((other / "join.json").read_text())

    fleet.start_minion(host)

    fleet.until(lambda: "key" in fleet.minion_status(host).get("link", ""), "the cause names the key")
    assert fleet.nodes() == {}


def test_full_disk_under_the_spool_stops_neither_enforcement_nor_the_agent_and_what_was_lost_is_counted(make_fleet):
    fleet = make_fleet(0)
    host = fleet.fabric.host("edge-1")
    host.write("/etc/secret/api.key", "not for everybody\n")
    host.run("mkdir", "-p", "/var/lib/garrison/minion")
    assert host.run("mount", "-t", "tmpfs", "-o", "size=8m", "quota", "/var/lib/garrison/minion").returncode == 0
    fleet.join(host, spool_max_bytes="4194304")
    fleet.apply("--wait", "30", "--limit", "edge-1", ok=(0, 6))
    fleet.fabric.cut(host)

    host.run("sh", "-c", "cat /dev/zero >/var/lib/garrison/minion/ballast")
    make_markers(host, "full-", 300)
    assert refused(host), "enforced with a full disk"
    assert fleet.minions["edge-1"].poll() is None, "the agent lives"
    host.run("rm", "/var/lib/garrison/minion/ballast")
    fleet.fabric.heal(host)
    make_markers(host, "freed-", 20)

    fleet.until(lambda: len(set(markers(fleet, "freed-"))) == 20, "what happens afterwards arrives", 90)
    found = markers(fleet, "full-")
    lost = sum(int(e["data"]["count"]) for e in fleet.events("--kind", "gap"))
    assert len(found) == len(set(found)), "nothing twice"
    assert len(found) == 300 or lost >= 300 - len(found), f"{len(found)} of 300 stored, {lost} counted as lost"


def test_bundle_changed_in_the_masters_store_is_refused_by_the_node_and_the_old_policy_holds(make_fleet, tmp_path):
    fleet = make_fleet(1)
    host = fleet.fabric.hosts["edge-1"]
    fleet.apply("--wait", "30", "--limit", "edge-1", ok=(0, 6))
    fleet.fabric.cut(host)
    states = tmp_path / "states"
    shutil.copytree(fleet.states, states)
    policy = min((states / "policies" / "demo").glob("*.yaml"))
    policy.write_text(policy.read_text() + "# marker-of-the-second-version\n")
    fleet.apply(states=states, ok=(0, 6))
    fleet.end_master()
    changed = flip_in_files(fleet.directory, b"marker-of-the-second-version", b"marker-of-the-sEcond-version")
    assert changed, "the policy's text is in the master's directory"
    fleet.start_master()
    fleet.fabric.heal(host)

    fleet.until(lambda: fleet.nodes()["edge-1"]["apply_state"] in {"refused", "failed"}, "the node refuses", 60)
    assert fleet.nodes()["edge-1"]["generation"] == 1
    assert refused(host)


def flip_in_files(directory: Path, old: bytes, new: bytes) -> int:
    """Replace bytes in every file below ``directory``; returns how many were found."""
    found = 0
    for path in directory.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        if old in content:
            found += content.count(old)
            path.write_bytes(content.replace(old, new))
    return found


def test_states_signed_by_a_stranger_are_refused_and_the_old_policy_holds(make_fleet, tmp_path):
    fleet = make_fleet(1)
    host = fleet.fabric.hosts["edge-1"]
    fleet.apply("--wait", "30", "--limit", "edge-1", ok=(0, 6))
    stranger = fleet.work / "stranger-keys"
    fleet.cli("init", "--dir", str(tmp_path / "other"), "--keys", str(stranger), "--advertise", fleet.endpoint)
    states = tmp_path / "states"
    shutil.copytree(fleet.states, states)
    (states / "top.yml").write_text((states / "top.yml").read_text().replace("mode: enforce", "mode: audit", 1))

    done = fleet.cli("apply", "--states", str(states), "--keys", str(stranger), ok=(3,))

    assert "key" in done.stderr
    assert fleet.nodes()["edge-1"]["assigned_generation"] == 1
    assert refused(host)


def test_restored_older_master_cannot_take_a_node_back_to_a_lower_generation(make_fleet, tmp_path):
    fleet = make_fleet(1)
    host = fleet.fabric.hosts["edge-1"]
    fleet.apply("--wait", "30", "--limit", "edge-1", ok=(0, 6))
    fleet.end_master()
    backup = tmp_path / "backup"
    shutil.copytree(fleet.directory, backup, ignore=shutil.ignore_patterns("*.sock"))
    fleet.start_master()
    states = tmp_path / "states"
    shutil.copytree(fleet.states, states)
    policy = min((states / "policies" / "demo").glob("*.yaml"))
    policy.write_text(policy.read_text() + "# second version\n")
    fleet.apply("--wait", "30", "--limit", "edge-1", states=states, ok=(0, 6))
    fleet.until(lambda: fleet.nodes()["edge-1"]["generation"] == 2, "the second generation is applied")

    fleet.end_master()
    shutil.rmtree(fleet.directory)
    shutil.copytree(backup, fleet.directory)
    fleet.start_master()
    fleet.until(lambda: fleet.nodes()["edge-1"]["state"] == "online", "the node comes back", 60)

    assert fleet.nodes()["edge-1"]["generation"] == 2, "the node tells what it enforces"
    assert refused(host)
