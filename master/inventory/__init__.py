"""Ansible inventories and host patterns, read through ansible-inventory."""
