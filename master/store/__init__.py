"""The master's durable store of events, nodes, bundles, assignments and jobs."""

from garrison.master.store.lane import Inflow, Stored
from garrison.master.store.nodes import NodeRow
from garrison.master.store.query import EventFilter
from garrison.master.store.retention import Retention
from garrison.master.store.store import Store

__all__ = ["EventFilter", "Inflow", "NodeRow", "Retention", "Store", "Stored"]
