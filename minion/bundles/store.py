"""The node's bundles: verify, write, sync, then switch. Whatever ends the process, a verified generation is left.

Rules of this file:
- ``stage`` believes nothing before ``NodeTrust`` has: roots, assignment, metadata, files, each verified before the next.
- ``commit`` is one replacement of the state file. Before it the old generation is current, after it the new one is.
- A generation is on trial between ``begin_trial`` and ``commit``: it is on disk, and it is not current. What is rejected is not
  taken again; the next generation is.
- Nothing that fails here changes what is current (fail-closed). A node whose every kept generation is damaged says so: then,
  and only then, it has nothing to enforce.
- The floor and the roots are kept durably: neither a restart nor a damaged generation lets an older one in.
Owns: that order. Does not own: the rules of trust (``common/trust/verify.py``), the files (``disk``).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from garrison.common import frames, limits
from garrison.common.errors import BundleError, GarrisonError, KernelError, QuarantinedError, SignatureError
from garrison.common.names import Digest, KeyFingerprint, NodeName
from garrison.common.trust.assignment import SignedAssignment
from garrison.common.trust.bundle import BundleContent, FileEntry
from garrison.common.trust.join import JoinFile
from garrison.common.trust.metadata import RootChain
from garrison.common.trust.order import check_release_order
from garrison.common.trust.verify import Floor, NodeTrust, verify_blob
from garrison.minion.bundles.disk import BundleDisk, Held, Record, Rejected, State, TrialNote
from garrison.minion.bundles.generation import Generation, Staged

__all__ = ["BundleStore", "Fetch"]

Fetch = Callable[[Digest, int], Awaitable[bytes]]

_log = logging.getLogger(__name__)


class BundleStore:
    """Bundles of one node.

    Args:
        directory: Where they are kept.
        join: The master this node joined: tenant and pinned roots.
        node: This node.
        fingerprint: Of its CURVE key.
        clock: Wall clock, UTC.

    Raises:
        KernelError: The directory cannot be used.
        SignatureError: The join file's roots are not usable.
    """

    def __init__(
        self,
        directory: Path,
        join: JoinFile,
        node: NodeName,
        fingerprint: KeyFingerprint,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._disk, self._clock = BundleDisk(directory), clock
        self._anchor = NodeTrust(
            tenant=join.tenant,
            node=node,
            fingerprint=fingerprint,
            bundles=RootChain.start(join.bundle_root.encode()),
            assignments=RootChain.start(join.assignment_root.encode()),
            floor=Floor(),
        )
        self._state = self._disk.read_state() or self._recovered()
        self._trust = self._newest_trust()
        self._files = threading.Lock()  # what is staged while another generation is committed must not be swept away
        self._coming_record, self._coming_blobs = set[Digest](), set[Digest]()

    def check_release(self, order: bytes) -> None:
        """Accept an order to release this node's enforcement, by the newest authors' keys that it knows.

        Raises:
            SignatureError: Not signed by enough of them.
            BundleError: No order, for somebody else, or expired.
        """
        trust = self._trust
        check_release_order(trust.bundles, order, tenant=trust.tenant, node=trust.node, now=self._clock())

    # ---- what is held ------------------------------------------------------------------------------------------------
    def current(self) -> Generation | None:
        """Return the newest committed generation that verifies; ``None`` when none was ever committed.

        Raises:
            BundleError: Generations were committed and none of them verifies any more.
        """
        return self._newest_of(self._state.held)

    def previous(self) -> Generation | None:
        """Return the newest generation before the last committed one that verifies; ``None`` when there was none.

        Raises:
            BundleError: There were some and none of them verifies any more.
        """
        return self._newest_of(self._state.held[1:])

    def _newest_of(self, candidates: Sequence[Held]) -> Generation | None:
        first: GarrisonError | None = None
        for held in candidates:
            try:
                return self._verified(held.record)
            except (BundleError, SignatureError) as err:
                _log.error("bundles=damaged generation=%s error=%s", held.generation, err)
                first = first or err
        if first is not None:
            raise BundleError(
                f"none of the {len(candidates)} generations on disk verifies",
                hint="apply again from the master; until then this node enforces nothing",
            ) from first
        return None

    def _verified(self, name: Digest) -> Generation:
        record = self._disk.read_record(name)
        # Against the roots of its own time: a key that was replaced later made no policy vanish that it had signed before.
        trust = replace(self._anchor.with_roots(record.assignment_roots, record.bundle_roots), floor=self._state.floor)
        assignment = trust.read_held(record.assignment)
        if assignment.content != name:
            raise BundleError(f"record {name[:12]} holds another assignment")
        metadata = self._disk.read_blob(assignment.bundle, assignment.bundle_bytes)
        content = trust.read_bundle(assignment, metadata)
        for entry in _share_entries(trust, content):
            self._disk.read_blob(entry.digest, entry.length)
        return Generation(assignment, content, trust, self._disk, self._clock)

    def _recovered(self) -> State:
        # No state: a first start, or it was damaged. What the records prove is taken back, so the floor does not fall.
        found: list[Generation] = []
        self._state = State()
        for name in self._disk.records():
            try:
                found.append(self._verified(name))
            except (BundleError, SignatureError) as err:
                _log.warning("bundles=record-unusable record=%s error=%s", name[:12], err)
        found.sort(key=lambda generation: generation.number, reverse=True)
        if not found:
            return self._state
        _log.warning("bundles=recovered generations=%s", [generation.number for generation in found])
        newest = found[0]
        return State(
            held=tuple(Held(generation=g.number, record=g.assignment.content) for g in found),
            floor=newest.trust.committed(newest.assignment, newest.content).floor,
            assignment_roots=_texts(newest.trust.assignments),
            bundle_roots=_texts(newest.trust.bundles),
        )

    def _newest_trust(self) -> NodeTrust:
        state = self._state
        trust = replace(self._anchor, floor=state.floor)
        return trust.with_roots([t.encode() for t in state.assignment_roots], [t.encode() for t in state.bundle_roots])

    # ---- something new -----------------------------------------------------------------------------------------------
    async def stage(self, assignment: frames.Assignment, fetch: Fetch) -> Staged:
        """Verify an assignment, get what is missing, verify that, and have all of it on disk. What is current stays current.

        Args:
            assignment: As the link brought it.
            fetch: Gets content by digest and expected length.

        Raises:
            SignatureError: Not signed by who must have signed it.
            QuarantinedError: It failed here before.
            BundleError: For somebody else, older than held, expired, or incomplete.
            KernelError: It cannot be written.
            LinkError: It cannot be fetched.
        """
        now = self._clock()
        trust = self._trust.with_roots(assignment.assignment_roots, assignment.bundle_roots)
        await self._keep_roots(trust)
        wanted = trust.new_assignment(assignment.assignment, now)
        self._refuse_rejected(wanted)
        self._coming_record, self._coming_blobs = {wanted.content}, {wanted.bundle}
        metadata = await self._get("the bundle", FileEntry(wanted.bundle_bytes, wanted.bundle), fetch)
        content = trust.new_bundle(wanted, metadata, now)
        blobs = {wanted.bundle: metadata}
        self._coming_blobs.update(content.files[path].digest for path in trust.share(content).files)
        for path in sorted(trust.share(content).files):
            entry = content.files[path]
            if entry.digest not in blobs:
                blobs[entry.digest] = await self._get(path, entry, fetch)
        record = Record(
            assignment=assignment.assignment, assignment_roots=trust.assignments.files, bundle_roots=trust.bundles.files
        )
        await asyncio.to_thread(self._write, wanted.content, record, blobs)
        return Staged(Generation(wanted, content, trust, self._disk, self._clock))

    async def _keep_roots(self, trust: NodeTrust) -> None:
        # At once, not with the commit: a key that was taken away must not count any more, even if this assignment fails.
        if (trust.assignments.files, trust.bundles.files) == (self._trust.assignments.files, self._trust.bundles.files):
            return
        state = msgspec.structs.replace(
            self._state, assignment_roots=_texts(trust.assignments), bundle_roots=_texts(trust.bundles)
        )
        await asyncio.to_thread(self._disk.write_state, state)
        self._state, self._trust = state, trust

    def _refuse_rejected(self, wanted: SignedAssignment) -> None:
        for old in self._state.rejected:
            if (old.generation, old.bundle) == (wanted.generation, wanted.bundle):
                raise QuarantinedError(
                    f"generation {old.generation} ({old.bundle[:12]}) is quarantined on this node: {old.reason}",
                    generation=old.generation,
                    bundle=old.bundle,
                    hint="mend the policy or the node, then apply again",
                )

    async def _get(self, name: str, entry: FileEntry, fetch: Fetch) -> bytes:
        data = await asyncio.to_thread(self._disk.find_blob, entry.digest, entry.length)
        if data is None:
            data = await fetch(entry.digest, entry.length)
            verify_blob(name, entry, data)
        return data

    def _write(self, name: Digest, record: Record, blobs: dict[Digest, bytes]) -> None:
        with self._files:
            absent = {digest: data for digest, data in blobs.items() if self._disk.find_blob(digest, len(data)) is None}
            self._disk.write_blobs(absent)
            self._disk.write_record(name, record)

    def commit(self, staged: Staged) -> Generation:
        """Make a staged generation current; afterwards no restart goes back below it.

        Raises:
            KernelError: The switch could not be written; the previous generation is still current.
        """
        generation = staged.generation
        trust = generation.trust.committed(generation.assignment, generation.content)
        new = Held(generation=generation.number, record=generation.assignment.content)
        others = [held for held in self._state.held if held != new]
        state = msgspec.structs.replace(
            self._state, held=(new, *others)[: limits.GENERATIONS_KEPT], floor=trust.floor, trial=None
        )
        self._disk.write_state(state)
        self._state, self._trust = state, trust
        self._sweep()
        return replace(generation, trust=trust)

    # ---- on trial ----------------------------------------------------------------------------------------------------
    @property
    def on_trial(self) -> TrialNote | None:
        """The last generation that was tried and neither committed nor rejected."""
        return self._state.trial

    def begin_trial(self, staged: Staged, boot: str) -> TrialNote:
        """Note durably that a staged generation is about to be tried.

        Raises:
            KernelError: It cannot be written: it must not be tried.
        """
        generation, last = staged.generation, self._state.trial
        again = last is not None and (last.generation, last.bundle) == (generation.number, generation.bundle)
        tries = last.tries + 1 if last is not None and again else 1
        trial = TrialNote(generation=generation.number, bundle=generation.bundle, boot=boot, tries=tries)
        state = msgspec.structs.replace(self._state, trial=trial)
        self._disk.write_state(state)
        self._state = state
        return trial

    def end_trial(self, *, counts: bool) -> None:
        """Note that a trial ended without a verdict; ``counts``: so many of these are a verdict.

        A disk that takes no note leaves the trial as it is: the next start then counts it.
        """
        trial = self._state.trial
        if trial is None or trial.over:
            return
        over = msgspec.structs.replace(trial, over=True, tries=trial.tries if counts else trial.tries - 1)
        self._state = msgspec.structs.replace(self._state, trial=over)
        self._write_or_log("trial-end")

    def reject_trial(self, reason: str) -> None:
        """Quarantine what is on trial, as ``reject`` does."""
        trial = self._state.trial
        if trial is not None:
            self._note_rejected(trial.generation, trial.bundle, reason)

    def _sweep(self) -> None:
        blobs: set[Digest] = set()
        for held in self._state.held:
            try:
                generation = self._verified(held.record)
            except (BundleError, SignatureError) as err:
                # Its files are unknown then: delete nothing, so that what is left of it can be looked at.
                _log.warning("bundles=not-swept generation=%s error=%s", held.generation, err)
                return
            blobs.add(generation.bundle)
            blobs.update(entry.digest for entry in _share_entries(generation.trust, generation.content))
        with self._files:
            records = {held.record for held in self._state.held} | self._coming_record
            self._disk.sweep(records=records, blobs=blobs | self._coming_blobs)

    def reject(self, staged: Staged, reason: str) -> None:
        """Note that a staged generation could not be enforced, so that it is not tried again. What is current stays so.

        A disk that takes no note costs a second try after a restart and nothing else; it is logged.
        """
        generation = staged.generation
        if any(held.record == generation.assignment.content for held in self._state.held):
            self.end_trial(counts=False)
            return  # it was enforced before: its failure now is the node's, and the next start must try it
        self._note_rejected(generation.number, generation.bundle, reason)

    def _note_rejected(self, generation: int, bundle: Digest, reason: str) -> None:
        note = Rejected(generation=generation, bundle=bundle, reason=reason[: limits.STRING_MAX_CHARS // 2], at_ns=time.time_ns())
        rejected = (*self._state.rejected, note)[-limits.QUARANTINE_MAX :]
        self._state = msgspec.structs.replace(self._state, rejected=rejected, trial=None)
        self._sweep()
        self._write_or_log("rejection")

    def _write_or_log(self, what: str) -> None:
        try:
            self._disk.write_state(self._state)
        except KernelError as err:
            _log.error("bundles=%s-not-kept error=%s", what, err)


def _share_entries(trust: NodeTrust, content: BundleContent) -> list[FileEntry]:
    return [content.files[path] for path in trust.share(content).files]


def _texts(chain: RootChain) -> tuple[str, ...]:
    return tuple(data.decode() for data in chain.files)
