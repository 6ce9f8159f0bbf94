"""Runs in a VM: watches two overlays, one on the other, and all their layers, and has programs open what is there.

Prints one JSON object: ``passed``, by path whether a program could open it; ``lapses``: events of the responder's own life.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from garrison.common.events import Event
from garrison.common.policy.rules import Entity, PathKind, PathTarget, Rule, RuleSet, Verdict
from garrison.minion.enforcers.fanotify import FanotifyEnforcer

_ROOT = Path("/srv/o")
_MOUNT = """
modprobe overlay
mkdir -p /srv/o && mount -t tmpfs o /srv/o && cd /srv/o
for o in one two; do
  mkdir -p $o/lower/low $o/upper/up $o/work $o/merged
  for d in lower/low upper/up; do echo x >$o/$d/public; echo x >$o/$d/secret; done
done
mount -t overlay one -o lowerdir=one/lower,upperdir=one/upper,workdir=one/work one/merged
mount -t overlay two -o lowerdir=two/lower:one/merged,upperdir=two/upper,workdir=two/work two/merged
"""


def _passes(*argv: str) -> bool:
    done = subprocess.run(argv, check=False, capture_output=True, text=True, start_new_session=True)
    if done.returncode and "Operation not permitted" not in done.stderr:
        raise SystemExit(f"{argv}: {done.stderr}")
    return done.returncode == 0


def main() -> None:
    subprocess.run(["sh", "-e", "-c", _MOUNT], check=True)
    events: list[Event] = []
    enforcer = FanotifyEnforcer(events.append, runtime_dir=Path(tempfile.mkdtemp()))
    target = PathTarget(how=PathKind.GLOB, value=f"{_ROOT}/**/secret")
    enforcer.apply(RuleSet(rules=(Rule(id="p/1", policy="p", entity=Entity.FILE, verdict=Verdict.BLOCK, target=target),)))
    folders = [_ROOT / o / place for o in ("one", "two") for place in ("merged/low", "merged/up", "lower/low", "upper/up")]
    passed = {str(folder.relative_to(_ROOT)): _passes("ls", str(folder)) for folder in folders}
    for folder in folders:
        for name in ("public", "secret"):
            passed[str((folder / name).relative_to(_ROOT))] = _passes("cat", str(folder / name))
    enforcer.close()
    json.dump({"passed": passed, "lapses": [e.data["state"] for e in events if e.kind == "tamper"]}, sys.stdout)


if __name__ == "__main__":
    main()
