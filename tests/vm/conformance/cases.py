"""All cases, and the files that their stimuli find."""

from __future__ import annotations

from vm.conformance.calls import CALLS
from vm.conformance.conditions import CONDITIONS
from vm.conformance.fiveg import FILES_5G, FIVE_G
from vm.conformance.hosts import HOSTS
from vm.conformance.opened import OPENED
from vm.conformance.programs import PROGRAMS
from vm.conformance.sockets import SOCKETS
from vm.conformance.world import files_for

__all__ = ["CASES", "FILES"]

CASES = (*HOSTS, *CALLS, *PROGRAMS, *OPENED, *CONDITIONS, *SOCKETS, *FIVE_G)
FILES = files_for(FILES_5G)
