"""The node's durable, bounded, acknowledged log of events.

``spool.py`` is the way in; ``database.py`` the only place that writes the file, ``reader.py`` the only other that reads it,
``intake.py`` the queue before it, ``caps.py`` what has to go when it is full, ``recover.py`` what is done about damage.
"""

from garrison.minion.spool.caps import SpoolCaps
from garrison.minion.spool.segment import Cargo, Item
from garrison.minion.spool.spool import Spool
from garrison.minion.spool.stats import SpoolStats

__all__ = ["Cargo", "Item", "Spool", "SpoolCaps", "SpoolStats"]
