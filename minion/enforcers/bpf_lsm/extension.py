"""Profiles that come after their generation was made: what they add to its tables, without a new generation.

A generation on trial has the copy before it on the other side, kept for the way back, so there is nowhere to build another one.

Rules of this file:
- Pure. A program is extended only by what changes nothing of it: every number and every outcome stays what it was, so that a
  decision may see one table from before and the next from after. What does not come out so is not extended.
Owns: what may be added. Does not own: bytes (``layout.lay_out_extension``), writing them (``enforcer``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from garrison.common import limits
from garrison.common.policy.rules import RuleSet
from garrison.minion.enforcers.bpf_lsm.program import Program, compile_program
from garrison.minion.enforcers.profiles import UNKNOWN_PROFILE, Placements, Profile, needed_profiles

__all__ = ["extended", "missing_profiles"]


def missing_profiles(program: Program, placements: Placements) -> tuple[Profile, ...]:
    """Return the profiles of ``placements`` that ``program`` has no number for, the most used first."""
    return tuple(p for p in needed_profiles(placements) if program.profiles.number(p) == UNKNOWN_PROFILE)


def extended(rules: RuleSet, program: Program, more: Sequence[Profile]) -> Program | None:
    """Return ``program`` with numbers for ``more`` profiles, as many as fit; ``None`` when it would not stay what it is.

    Args:
        rules: What it was compiled from.
        program: As it is in the kernel.
        more: Profiles that it does not know.

    Raises:
        CompileError: It would be too large.
    """
    grown = compile_program(rules, (*program.profiles.known, *more)[: limits.LSM_PROFILES_MAX])
    return grown if _is_kept(program, grown) else None


def _is_kept(before: Program, after: Program) -> bool:
    same = ("rules", "children", "nodes", "names", "globs", "glob_sets", "unions", "unresolved", "domains")
    return all(getattr(before, name) == getattr(after, name) for name in same) and all(
        _holds(getattr(after, name), getattr(before, name)) for name in ("records", "postures", "traces", "arguments")
    )


def _holds(whole: Mapping[object, object], part: Mapping[object, object]) -> bool:
    return all(whole.get(key) == value for key, value in part.items())
