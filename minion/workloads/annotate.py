"""Events of containers say which container it was, not only its id. Pure.

Rules of this file:
- ``container.name``, ``container.image`` and ``container.namespace`` in ``data`` of every event whose actor is in a container
  that is known; alerts also ``container.labels``, those that others gave it, as far as ``EVENT_LABELS_MAX_BYTES`` go.
- What an event's maker said stands: no key is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from garrison.common import limits
from garrison.common.events import Event, Lane, Scalar
from garrison.minion.workloads.model import Workload

__all__ = ["annotated"]


def annotated(event: Event, container: Callable[[str], Workload | None]) -> Event:
    """Return ``event`` with what ``container`` knows of its actor's."""
    actor = event.actor
    found = container(actor.container) if actor is not None and actor.container else None
    if found is None:
        return event
    data: dict[str, Scalar | list[Scalar]] = {"container.name": found.name, "container.namespace": found.namespace}
    if found.image:
        data["container.image"] = found.image
    if event.lane is Lane.ALERT and (labels := _labels(found)):
        data["container.labels"] = labels
    if len(data.keys() | event.data.keys()) > limits.EVENT_DATA_MAX_KEYS:
        return event
    return msgspec.structs.replace(event, data=data | event.data)


def _labels(workload: Workload) -> list[Scalar]:
    kept, room = list[Scalar](), limits.EVENT_LABELS_MAX_BYTES
    for label in sorted(workload.labels):
        if label.startswith(("garrison/", "kubearmor.io/")):
            continue  # said by the event's other fields
        room -= len(label.encode("utf-8", "replace"))
        if room < 0:
            break
        kept.append(label)
    return kept
