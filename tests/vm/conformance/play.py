"""Runs in a VM: holds policies as an agent does, has stimuli played, and says what became of both.

    play.py SOCKET        serves requests, one JSON object a line each way

``{"do": "begin", "files": ...}`` builds the places. ``{"do": "play", "documents": [text], "steps": ...}`` applies the
policies by the stack of backends, plays the steps and returns the lines of the compile ``report``, and ``results`` and
``events`` of each step.
"""

from __future__ import annotations

import json
import os
import queue
import socket
import sys
import tempfile
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from stage import CGROUPS, FAR, FAR_PORT, SENTINELS, serve

_TOLD_S = 60
_SENTINEL = f"""
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: sentinel}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  file: {{matchDirectories: [{{dir: {SENTINELS}/}}]}}
  action: Audit
"""
_SENTINEL_CALL = f"""
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: sentinel-call}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  syscalls: {{matchPaths: [{{syscall: [rmdir], path: {SENTINELS}/}}]}}
  action: Audit
"""
_SENTINEL_PACKET = f"""
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {{name: sentinel-packet}}
spec:
  nodeSelector: {{matchLabels: {{kubearmor.io/hostname: "*"}}}}
  egress:
  - to: [{{ipBlock: {{cidr: {FAR}/32}}}}]
    ports: [{{port: "{FAR_PORT}", endPort: {FAR_PORT + 99}, protocol: UDP}}]
  action: Audit
"""
# Backend -> kind of rule for which it is used, what has it tell that a step is over, and of what for a step's number.
_SENTINELS = {
    "bpf_lsm": ("", _SENTINEL, lambda number: f"{SENTINELS}/{number}"),
    "syscalls": ("syscall", _SENTINEL_CALL, lambda number: f"rmdir {SENTINELS}/{number}.call"),
    "nftables": ("firewall", _SENTINEL_PACKET, lambda number: f"udp://{FAR}:{FAR_PORT + number}"),
}


class Player:
    """The stack of backends, and the stage in a process of its own."""

    def __init__(self, stage: socket.socket) -> None:
        from garrison.minion.enforcers.stack import EnforcerStack, default_backends

        self._events: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stage = stage.makefile("rw")
        # Those that refuse most; others would only be asked in their stead.
        backends = default_backends(self._events.put, runtime_dir=Path(tempfile.mkdtemp()), cgroup=None, names=_SENTINELS)
        self._stack = EnforcerStack(backends)

    def begin(self, asked: dict[str, Any]) -> Any:
        """Build the places and apply nothing, so that the first case finds the programs loaded."""
        from garrison.common.policy.normalise import NodeFacts, normalise

        self._ask_stage({"files": asked["files"]})
        probes = {name: probe.ok or probe.reason for name, probe in self._stack.probe().items()}
        self._stack.apply(normalise((), NodeFacts("n")))
        return probes

    def play(self, asked: dict[str, Any]) -> Any:
        """Apply, play, and sort events by the step that caused them."""
        import msgspec

        from garrison.common.policy.load import load_text
        from garrison.common.policy.normalise import NodeFacts, Normalised, normalise
        from garrison.common.policy.rules import Mode, Posture, Postures

        posture = Posture(asked["posture"])
        node = NodeFacts(asked["node"])
        postures = Postures(file=posture, network=posture, capability=posture)

        def read(texts: Iterable[str]) -> Normalised:
            return normalise(((d, Mode.ENFORCE) for text in texts for d in load_text(text)), node, postures)

        entities = {"", *(rule.entity.value for rule in read(asked["documents"]).rules.rules)}
        used = [backend for backend, (entity, _, _) in _SENTINELS.items() if entity in entities]
        wanted = read((*asked["documents"], *(_SENTINELS[backend][1] for backend in used)))
        self._stack.set_workloads(_workloads(asked) if asked["labels"] else ())
        report = self._stack.apply(wanted)
        while not self._events.empty():
            self._events.get()
        results = self._ask_stage({"steps": asked["steps"]})
        return {
            "report": msgspec.to_builtins(report),
            "notes": list(wanted.notes),
            "results": results,
            "events": [[msgspec.to_builtins(e) for e in of_step] for of_step in self._sorted(len(results), used)],
        }

    def _sorted(self, steps: int, used: Iterable[str]) -> list[list[Any]]:
        """Return the events of each step: those before its sentinel, by the backend that told them."""
        found: list[list[Any]] = [[] for _ in range(steps)]
        reached = dict.fromkeys(used, 0)
        while min(reached.values()) < steps:
            event = self._events.get(timeout=_TOLD_S)
            if event.policy.startswith("sentinel"):
                assert event.object == _SENTINELS[event.backend][2](reached[event.backend]), event
                reached[event.backend] += 1
            else:
                found[reached[event.backend]].append(event)
        return found

    def _ask_stage(self, what: dict[str, Any]) -> Any:
        self._stage.write(json.dumps(what) + "\n")
        self._stage.flush()
        answer = self._stage.readline()
        assert answer, "the stage has ended; its traceback is in the log"
        return json.loads(answer)


def _workloads(asked: dict[str, Any]) -> list[Any]:
    """Return the case's workload and the other one, in the namespace of the first."""
    from garrison.common.policy.expand import CONTAINERS
    from garrison.minion.workloads.model import Workload, WorkloadKind

    labels = {"subject": asked["labels"], "bystander": asked["others"]}
    return [
        Workload(
            kind=WorkloadKind.CONTAINER,
            name=name,
            namespace=asked["namespace"],
            labels=frozenset({*held, CONTAINERS}),
            cgroup=f"/conform/{name}",
            cgroup_id=(CGROUPS / name).stat().st_ino,
        )
        for name, held in labels.items()
    ]


def main() -> None:
    """Serve until killed."""
    ours, stages = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        serve(stages)
        os._exit(0)
    stages.close()
    player = Player(ours)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(sys.argv[1])
    listening.listen()
    while True:
        connection, _ = listening.accept()
        with connection, connection.makefile("rw") as stream:
            for line in stream:
                asked = json.loads(line)
                try:
                    answer = {"done": getattr(player, asked["do"])(asked)}
                except Exception:  # noqa: BLE001 - the test that asked shows it
                    answer = {"error": traceback.format_exc()}
                stream.write(json.dumps(answer) + "\n")
                stream.flush()


if __name__ == "__main__":
    main()
