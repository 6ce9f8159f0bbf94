"""Ansible inventories and host patterns, read through ansible-inventory."""

from garrison.master.inventory.model import Inventory
from garrison.master.inventory.reader import ENV_INVENTORY, find_inventory, read_inventory

__all__ = ["ENV_INVENTORY", "Inventory", "find_inventory", "read_inventory"]
