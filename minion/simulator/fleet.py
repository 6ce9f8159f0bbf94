"""A simulated fleet: pools in processes of their own, driven as one.

Rules of this file:
- A node takes two descriptors, and two more until libzmq buried its former connection: there are enough processes for that.
- A pool that ends by itself is an error, never silence.
"""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Final, Self

from garrison.common.errors import ConfigError, LinkError
from garrison.minion.simulator.figures import Figures
from garrison.minion.simulator.plan import FleetPlan, NodeKey
from garrison.minion.simulator.pool import Cut, Pace, Report, Stop, run_pool

__all__ = ["SimulatedFleet", "processes_for"]

_FILES_A_NODE: Final = 4  # libzmq's mailbox and the connection, of the last connection and of the one before
_FILES_SPARE: Final = 200
_ANSWER_S: Final = 60.0
_Command = Cut | Pace | Report | Stop


def processes_for(nodes: int, *, wanted: int, files_max: int) -> int:
    """Return over how many processes to spread ``nodes``: ``wanted``, or as many as their descriptors need.

    Raises:
        ConfigError: A process of this machine may open too few files to hold any.
    """
    per_process = (files_max - _FILES_SPARE) // _FILES_A_NODE
    if per_process < 1:
        raise ConfigError(f"a process may open {files_max} files here, which is too few", hint="raise `ulimit -n`")
    return min(max(1, wanted, -(-nodes // per_process)), max(1, nodes))


class SimulatedFleet:
    """A running fleet; a context manager.

    Args:
        plan: What to simulate; ``processes`` is raised when descriptors are short.
        keys: Its nodes, accepted at the master.
    """

    def __init__(self, plan: FleetPlan, keys: Sequence[NodeKey]) -> None:
        _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
        count = processes_for(len(keys), wanted=plan.processes, files_max=files_max)
        # Not forked: libzmq's threads would be missing in the child.
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for number in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=run_pool, args=(theirs, plan, list(keys[number::count])), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the pools."""
        return [process.pid for process in self._processes if process.pid is not None]

    def figures(self) -> Figures:
        """Return the sum of what all pools counted so far.

        Raises:
            LinkError: A pool has ended.
        """
        return self._all(Report())

    def cut(self, share: float = 1.0, away_s: float = 0.0) -> Figures:
        """Drop connections of a share of the nodes; they come back all at once after ``away_s``; raises as ``figures``."""
        return self._all(Cut(share, away_s))

    def pace(self, rate: float) -> Figures:
        """Have ``rate`` events a second made on each node from now on; what was made is still sent; raises as ``figures``."""
        return self._all(Pace(rate))

    def close(self) -> None:
        """End all pools. Idempotent."""
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
                process.join()
        self._pipes, self._processes = [], []

    def _all(self, command: _Command) -> Figures:
        total = Figures()
        for pipe in self._pipes:
            self._tell(pipe, command)
        for pipe in self._pipes:
            total.add(self._answer(pipe))
        return total

    def _tell(self, pipe: Connection, command: _Command) -> None:
        try:
            pipe.send(command)
        except OSError as err:
            raise _ended() from err

    def _answer(self, pipe: Connection) -> Figures:
        try:
            if not pipe.poll(_ANSWER_S):
                raise LinkError(f"simulated nodes do not answer within {_ANSWER_S:g} s", hint="is this machine overloaded?")
            answer = pipe.recv()
        except (EOFError, OSError) as err:
            raise _ended() from err
        if not isinstance(answer, Figures):
            raise TypeError(f"a pool answered {type(answer).__name__}")
        return answer


def _ended() -> LinkError:
    return LinkError("a process with simulated nodes ended by itself", hint="its traceback is on standard error")
