"""What becomes of each USB device rule, and of each device as an event. Pure."""

from __future__ import annotations

from typing import Final

from garrison.common.events import Event, Kind, Lane, Scalar
from garrison.common.frames import RuleReport
from garrison.common.policy.devices import CLASS_NAMES, effect_of
from garrison.common.policy.rules import Entity, RuleSet, RuleStatus, Verdict
from garrison.minion.enforcers.usb.plan import Outcome
from garrison.minion.enforcers.usb.sysfs import Device

__all__ = ["BACKEND", "alert", "report_rules"]

BACKEND: Final = "usb"
_SHOWN_MAX: Final = 16  # functions of a device in its event


def report_rules(rules: RuleSet, *, missing: str = "") -> tuple[RuleReport, ...]:
    """Return what becomes of each device rule here; other rules are left out.

    Args:
        rules: All rules of the node.
        missing: Why there can be no USB devices here; empty when there can.
    """
    held = [rule for rule in rules.rules if rule.entity is Entity.DEVICE]
    if missing:
        return tuple(RuleReport(rule=rule.id, status=RuleStatus.IMPOSSIBLE, reason=missing) for rule in held)
    return tuple(
        RuleReport(rule=rule.id, status=RuleStatus.AUDITED if effect_of(rule) is Verdict.AUDIT else RuleStatus.ENFORCED)
        for rule in held
    )


def alert(device: Device, outcome: Outcome, *, result: str, present: bool) -> Event:
    """Return the event of a device that rules speak of.

    Args:
        device: As sysfs shows it.
        outcome: What was decided, by some rule.
        result: ``refused``, ``passed``, or the name of the error with which the kernel did not do it.
        present: It was there before the rules were.
    """
    rule, function, said = outcome.decision.rule, outcome.function, device.said
    assert rule is not None  # noqa: S101 - what no rule speaks of is not told
    data: dict[str, Scalar | list[Scalar]] = {
        "path": device.name,
        "level": device.level,
        "vendor": f"{said.vendor:04x}" if said.vendor >= 0 else "",
        "product": f"{said.product:04x}" if said.product >= 0 else "",
        "manufacturer": device.manufacturer,
        "title": device.title,
        "serial": device.serial,
        "functions": [f"{one.class_:02x}/{one.subclass:02x}/{one.protocol:02x}" for one in said.functions[:_SHOWN_MAX]],
        "class": function.class_ if function else -1,
        "class_name": CLASS_NAMES.get(function.class_, "") if function else "",
        "subclass": function.subclass if function else -1,
        "protocol": function.protocol if function else -1,
        "present": present or None,
        "spared": outcome.spared,
        "unreadable": not said.whole or None,
        "by_posture": outcome.decision.by_posture or None,
        "message": rule.message,
        "tags": list(rule.tags),
    }
    name = f"{data['vendor']}:{data['product']}" if said.vendor >= 0 else "unknown"
    return Event(
        lane=Lane.ALERT,
        kind=Kind.ALERT,
        severity=rule.severity,
        object=f"usb://{device.name}/{name}",
        operation="device",
        verdict=outcome.decision.verdict.value,
        result=result,
        policy=rule.policy,
        rule=rule.id,
        backend=BACKEND,
        data={key: value for key, value in data.items() if value not in ("", None, -1, [])},
    )
