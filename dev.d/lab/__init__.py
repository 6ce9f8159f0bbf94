"""Machines to try garrison on without a VM: hosts made of namespaces, and a fleet of master and minions on them."""
