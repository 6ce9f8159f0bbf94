"""Backends that stand in where the kernel enforcer does not, or beside it, load and attach on every kernel in scope."""

from __future__ import annotations

import json

import pytest

from vm.lab import K61, K612, Lab, Machine

_PROBE = """
import json, pathlib, sys, tempfile
from garrison.minion.enforcers.stack import EnforcerStack, default_backends
names = sys.argv[1:]
stack = EnforcerStack(default_backends(print, runtime_dir=pathlib.Path(tempfile.mkdtemp()), cgroup=None, names=names))
print(json.dumps({name: probe.ok or probe.reason for name, probe in stack.probe().items()}))
stack.close()
"""
NAMES = ("cgroup_net", "syscalls", "audit", "nftables", "usb", "fanotify")


@pytest.mark.parametrize("machine", [pytest.param(K61, id="6.1"), pytest.param(K612, id="6.12")])
def test_every_backend_is_loaded_and_attached_on_this_kernel(lab: Lab, machine: Machine) -> None:
    vm = lab.boot("backends", machine)

    probes = json.loads(vm.check("python3", "-c", _PROBE, *NAMES, timeout_s=120))

    assert probes == dict.fromkeys(NAMES, True)
