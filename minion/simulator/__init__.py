"""Simulated nodes: the link's frames, keys and rules without an agent behind them, thousands in a process.

``node.py`` is one node as rules without I/O; ``pool.py`` runs many of them on sockets in one process; ``fleet.py`` runs pools in
processes and sums up what they count; ``figures.py`` is what is counted.
"""

from garrison.minion.simulator.figures import Figures, Latencies
from garrison.minion.simulator.fleet import SimulatedFleet
from garrison.minion.simulator.plan import FleetPlan, NodeKey, make_keys

__all__ = ["Figures", "FleetPlan", "Latencies", "NodeKey", "SimulatedFleet", "make_keys"]
