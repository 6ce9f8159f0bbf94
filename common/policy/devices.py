"""What USB device rules mean: one pure function from a RuleSet and a device's functions to a decision.

Rules of this file:
- A device is judged by its functions: class, subclass and protocol of each interface that it can have, and its own.
- Of the rules that name a function the most specific decides: ``level`` and ``class`` weigh 100 each, ``subClass`` 10,
  ``protocol`` 1, class ``ALL`` nothing. Of equals, block beats audit beats allow.
- An allow rule makes an allow-list: a function that no rule names gets the device posture.
- The strictest answer over all functions is the device's: what is refused and what passes would be in the same hands.
- Rules in mode ``audit`` only record: the more specific of them never loosen what enforced ones say.
Owns: words and meaning. Does not own: what a descriptor says and which devices are spared (the node's backend).
Source: specificity and class names as in KubeArmor's USB device handler; class numbers as given out by the USB forum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from garrison.common.policy.match import Decision
from garrison.common.policy.rules import Entity, HostScope, Mode, Other, Posture, Rule, RuleSet, Verdict

__all__ = [
    "ANY",
    "CLASS_NAMES",
    "HUB",
    "LEVEL_MAX",
    "DeviceDecision",
    "DeviceFunction",
    "DeviceSpec",
    "class_of",
    "code_of",
    "decide_device",
    "device_rules",
    "device_text",
    "effect_of",
    "level_of",
    "may_refuse",
    "names_function",
    "spec_of",
    "specificity",
]

ANY: Final = -1
LEVEL_MAX: Final = 6  # five hubs between a port of the machine and a device: USB 2.0, section 4.1.1
HUB: Final = 9
_CODE_MAX: Final = 255
_BY_INTERFACES: Final = ((0, ANY, ANY), (0xEF, 2, 1))  # device classes that say: look at my interfaces
CLASS_NAMES: Final = {
    1: "AUDIO",
    2: "COMMUNICATION-CDC",
    3: "HID",
    5: "PHYSICAL",
    6: "IMAGE",
    7: "PRINTER",
    8: "MASS-STORAGE",
    HUB: "HUB",
    10: "CDC-DATA",
    11: "SMART-CARD",
    13: "CONTENT-SECURITY",
    14: "VIDEO",
    15: "PERSONAL-HEALTHCARE",
    16: "AUDIO/VIDEO",
    17: "BILLBOARD",
    18: "TYPE-C-BRIDGE",
    19: "BULK-DISPLAY",
    20: "MCTP",
    60: "I3C",
    220: "DIAGNOSTIC",
    224: "WIRELESS-CONTROLLER",
    239: "MISCELLANEOUS",
    254: "APPLICATION-SPECIFIC",
    255: "VENDOR-SPECIFIC",
}
_NUMBERS: Final = {name: number for number, name in CLASS_NAMES.items()}
_STRICTEST: Final = (Verdict.BLOCK, Verdict.AUDIT, Verdict.ALLOW)


class DeviceSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device rule names; ``ANY`` where it names all.

    Attributes:
        class_: Class of a function, 1 to 255.
        subclass: Its subclass.
        protocol: Its protocol.
        level: How far from the machine: 1 for one of its own ports, one more for each hub between.
    """

    class_: int = msgspec.field(default=ANY, name="class")
    subclass: int = ANY
    protocol: int = ANY
    level: int = ANY


class DeviceFunction(msgspec.Struct, frozen=True, order=True):
    """Something that a device says it can do.

    Attributes:
        class_: Class.
        subclass: Subclass.
        protocol: Protocol.
        whole: It is said of the device, not of an interface.
    """

    class_: int
    subclass: int
    protocol: int
    whole: bool = False

    @property
    def is_concrete(self) -> bool:
        """Whether it says what the device does; some classes of whole devices only point at the interfaces."""
        triple = (self.class_, self.subclass, self.protocol)
        return not (self.whole and any(_fits(pattern, triple) for pattern in _BY_INTERFACES))


class DeviceDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What becomes of a device.

    Attributes:
        decision: Verdict and rule.
        function: The function that decided; ``None`` for a device without any.
    """

    decision: Decision
    function: DeviceFunction | None = None


# ---- words -------------------------------------------------------------------------------------------------------------
def class_of(value: str | int) -> int:
    """Return the number of a class written as a number, ``0x`` number or name; ``ANY`` for ``ALL``.

    Raises:
        ValueError: There is no such class.
    """
    text = str(value).strip().upper()
    if text == "ALL":
        return ANY
    number = _NUMBERS.get(text) or _number(text)
    if number is None or not 1 <= number <= _CODE_MAX:
        raise ValueError(f"must be ALL, a number from 1 to {_CODE_MAX}, or one of {', '.join(_NUMBERS)}")
    return number


def code_of(value: str | int) -> int:
    """Return the number of a subclass or protocol.

    Raises:
        ValueError: It is none.
    """
    number = _number(str(value).strip().upper())
    if number is None or number > _CODE_MAX:
        raise ValueError(f"must be a number from 0 to {_CODE_MAX}")
    return number


def level_of(value: str | int) -> int:
    """Return a level.

    Raises:
        ValueError: There is no such level.
    """
    number = _number(str(value).strip().upper())
    if number is None or not 1 <= number <= LEVEL_MAX:
        raise ValueError(f"must be a number from 1, a port of the machine itself, to {LEVEL_MAX}")
    return number


def _number(text: str) -> int | None:
    digits, base = (text[2:], 16) if text.startswith("0X") else (text, 10)
    if not digits.isascii() or not digits.isalnum() or len(digits) > len("255"):
        return None
    try:
        return int(digits, base)
    except ValueError:
        return None


def device_text(spec: DeviceSpec) -> str:
    """Return ``spec`` in words, for people."""
    name = "ALL" if spec.class_ == ANY else CLASS_NAMES.get(spec.class_, str(spec.class_))
    rest = {"subClass": spec.subclass, "protocol": spec.protocol, "level": spec.level}
    return " ".join([f"class {name}", *(f"{key} {value}" for key, value in rest.items() if value != ANY)])


# ---- meaning -----------------------------------------------------------------------------------------------------------
def spec_of(rule: Rule) -> DeviceSpec:
    """Return what a device rule names."""
    assert isinstance(rule.target, Other)  # noqa: S101 - expand makes no other
    return msgspec.json.decode(rule.target.spec, type=DeviceSpec)


def device_rules(rules: RuleSet) -> tuple[Rule, ...]:
    """Return the device rules that hold for the node as a whole; there are no others."""
    return tuple(rule for rule in rules.rules if rule.entity is Entity.DEVICE and isinstance(rule.scope, HostScope))


def effect_of(rule: Rule) -> Verdict:
    """Return what comes of a rule in its mode."""
    return Verdict.AUDIT if rule.verdict is Verdict.BLOCK and rule.mode is Mode.AUDIT else rule.verdict


def names_function(spec: DeviceSpec, function: DeviceFunction, level: int) -> bool:
    """Return whether a rule on ``spec`` names ``function`` of a device at ``level``."""
    pattern = (spec.class_, spec.subclass, spec.protocol, spec.level)
    return _fits(pattern, (function.class_, function.subclass, function.protocol, level))


def specificity(spec: DeviceSpec) -> int:
    """Return how specific a rule is; the highest of those that name a function decides."""
    weights = ((spec.class_, 100), (spec.level, 100), (spec.subclass, 10), (spec.protocol, 1))
    return sum(weight for value, weight in weights if value != ANY)


def may_refuse(rules: RuleSet) -> bool:
    """Return whether there is a device that ``rules`` refuse."""
    held = device_rules(rules)
    listed = any(rule.verdict is Verdict.ALLOW and rule.mode is Mode.ENFORCE for rule in held)
    return any(effect_of(rule) is Verdict.BLOCK for rule in held) or (listed and rules.postures.device is Posture.BLOCK)


def decide_device(rules: RuleSet, functions: Sequence[DeviceFunction], level: int) -> DeviceDecision:
    """Return the decision for a device.

    Args:
        rules: All rules of the node.
        functions: What the device says it can do.
        level: How far from the machine it is.
    """
    held = device_rules(rules)
    concrete = any(function.is_concrete for function in functions)
    said = [
        DeviceDecision(decision=decision, function=function)
        for function in functions
        if (
            decision := _decide_function(
                rules.postures.device, held, function, level, posture=function.is_concrete or not concrete
            )
        )
    ]
    if not functions:
        said = [DeviceDecision(decision=_by_posture(rules.postures.device, held))]
    return min(said, key=_strictness, default=DeviceDecision(decision=Decision(verdict=Verdict.ALLOW)))


def _decide_function(
    posture_of_node: Posture, held: Sequence[Rule], function: DeviceFunction, level: int, *, posture: bool
) -> Decision | None:
    """Return the stricter of what enforced rules say, and what all say; ``None`` when nothing does."""
    enforced = [rule for rule in held if rule.mode is Mode.ENFORCE]
    said = [
        _named(some, function, level) or (_by_posture(posture_of_node, some) if posture else None) for some in (enforced, held)
    ]
    return min((one for one in said if one is not None), key=lambda one: _STRICTEST.index(one.verdict), default=None)


def _named(held: Iterable[Rule], function: DeviceFunction, level: int) -> Decision | None:
    naming = [(specificity(spec), rule) for rule in held if names_function(spec := spec_of(rule), function, level)]
    if not naming:
        return None
    most = max(weight for weight, _ in naming)
    rule = min((rule for weight, rule in naming if weight == most), key=lambda rule: (_STRICTEST.index(effect_of(rule)), rule.id))
    return Decision(verdict=effect_of(rule), rule=rule)


def _by_posture(posture: Posture, held: Iterable[Rule]) -> Decision:
    lists = sorted((rule for rule in held if rule.verdict is Verdict.ALLOW), key=lambda rule: (rule.mode is Mode.AUDIT, rule.id))
    if not lists:
        return Decision(verdict=Verdict.ALLOW)
    blocks = posture is Posture.BLOCK and lists[0].mode is Mode.ENFORCE
    return Decision(verdict=Verdict.BLOCK if blocks else Verdict.AUDIT, rule=lists[0], by_posture=True)


def _strictness(said: DeviceDecision) -> tuple[int, bool, bool, DeviceFunction]:
    decision = said.decision
    function = said.function or DeviceFunction(0, 0, 0)
    return _STRICTEST.index(decision.verdict), decision.rule is None, decision.by_posture, function


def _fits(pattern: Sequence[int], values: Sequence[int]) -> bool:
    return all(wanted in (ANY, value) for wanted, value in zip(pattern, values, strict=True))
