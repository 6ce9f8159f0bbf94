"""Runs in a VM: switches between two sets of rules as fast as it goes while tasks try them; prints what came of it as JSON.

Arguments: how many evaluations to go on for; standard input: the sets of rules. Nobody reads the events, so the ring is full
soon: verdicts must hold all the same.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import msgspec

from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.bpf_lsm.enforcer import BpfLsmEnforcer

_WORKERS = ("one", "two", "one", "two")
_SAID = re.compile(r"done (\d+) wrong (\d+) closed (\d+) (.*)")


def main() -> None:
    """Hold, let work, count."""
    wanted = int(sys.argv[1])
    sets = msgspec.json.decode(sys.stdin.buffer.read(), type=list[RuleSet])
    enforcer = BpfLsmEnforcer(lambda _: None)
    enforcer.apply(sets[0])
    assert enforcer._reader
    enforcer._reader.close()
    before, swaps = enforcer.status().counters, 0
    os.nice(-15)  # else it would switch once while they do thousands
    nice = ["nice", "-n", "15"]
    workers = [subprocess.Popen([*nice, f"/race/bin/{name}", "work"], stdout=subprocess.PIPE, text=True) for name in _WORKERS]
    churn = subprocess.Popen([*nice, "/race/bin/fine", "churn"], stderr=subprocess.PIPE, text=True)
    while (after := enforcer.status().counters)["decisions"] - before["decisions"] < wanted:
        swaps += 1
        enforcer.apply(sets[swaps % len(sets)])
    churn.terminate()
    for worker in workers:
        worker.terminate()
    said = [_SAID.match(worker.communicate()[0]) for worker in workers]
    done = [match.groups() for match in said if match]
    sys.stdout.write(
        json.dumps(
            {
                "evaluations": after["decisions"] - before["decisions"],
                "operations": sum(int(each[0]) for each in done),
                "wrong": sum(int(each[1]) for each in done),
                "closed": sum(int(each[2]) for each in done),
                "first_wrong": next((each[3] for each in done if each[3]), ""),
                "workers": len(done),
                "swaps": swaps,
                "refused": after["blocks"] - before["blocks"],
                "walks": after["walks"] - before["walks"],
                "unresolved": after["unresolved"] - before["unresolved"],
                "table_errors": after["table_errors"] - before["table_errors"],
                "churn_errors": len(churn.communicate()[1].splitlines()),
            }
        )
    )


if __name__ == "__main__":
    main()
