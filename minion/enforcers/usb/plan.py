"""From rules and a device to what becomes of it. Pure.

Rules of this file:
- What the rules mean is ``common.policy.devices``; here stands what is never refused, whatever they say.
- A hub is refused only by a rule that names the class HUB: behind it is more than itself. Root hubs are never judged.
- What carries the file systems that the machine runs from, and every hub before it, is never refused.
- A device whose descriptors cannot be read whole is refused where any device may be.
"""

from __future__ import annotations

from typing import Final

import msgspec

from garrison.common.policy.devices import HUB, DeviceFunction, decide_device, device_rules, effect_of, may_refuse, spec_of
from garrison.common.policy.match import Decision
from garrison.common.policy.rules import Rule, RuleSet, Verdict
from garrison.minion.enforcers.usb.sysfs import Device

__all__ = ["Outcome", "judge"]

_HUB: Final = "hub"
_CARRIER: Final = "carries a file system that the machine runs from"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a device.

    Attributes:
        decision: What the rules say, and what comes of it: a block that is spared is an audit.
        function: The function of the device that decided; ``None`` when none did.
        spared: Why it is not refused although the rules say so; empty when they do not.
    """

    decision: Decision
    function: DeviceFunction | None = None
    spared: str = ""

    @property
    def refused(self) -> bool:
        """Whether the device may not be used."""
        return self.decision.verdict is Verdict.BLOCK


def judge(rules: RuleSet, device: Device, carriers: frozenset[str]) -> Outcome:
    """Return what becomes of ``device``.

    Args:
        rules: All rules of the node.
        device: Not a root hub.
        carriers: Names of devices that carry what the machine runs from, and of hubs before them.
    """
    said = decide_device(rules, device.said.functions, device.level)
    decision, function = said.decision, said.function
    if not device.said.whole and may_refuse(rules) and decision.verdict is not Verdict.BLOCK:
        decision, function = Decision(verdict=Verdict.BLOCK, rule=_refusing(rules)), None
    if decision.verdict is not Verdict.BLOCK or decision.rule is None:
        return Outcome(decision=decision, function=function)
    spared = _CARRIER if device.name in carriers else _HUB if _is_spared_hub(device, decision) else ""
    if spared:
        decision = msgspec.structs.replace(decision, verdict=Verdict.AUDIT)
    return Outcome(decision=decision, function=function, spared=spared)


def _is_spared_hub(device: Device, decision: Decision) -> bool:
    is_hub = bool(device.said.functions) and all(function.class_ == HUB for function in device.said.functions)
    named = decision.rule is not None and not decision.by_posture and spec_of(decision.rule).class_ == HUB
    return is_hub and not named


def _refusing(rules: RuleSet) -> Rule:
    held = device_rules(rules)
    blocks = [rule for rule in held if effect_of(rule) is Verdict.BLOCK]
    return min(blocks or [rule for rule in held if rule.verdict is Verdict.ALLOW], key=lambda rule: rule.id)
