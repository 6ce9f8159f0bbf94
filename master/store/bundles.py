"""Bundles, their files and assignments in the store: bytes by digest, the newest assignment of each node.

Rules of this file:
- Content is kept byte for byte under its digest and never changed; the node verifies it again, so a damaged store fools nobody.
- An assignment is replaced only by one with a higher generation.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence

from garrison.common.names import Digest, NodeName
from garrison.master.records import StoredAssignment, StoredBundle

__all__ = ["assignments", "blob", "newest_bundle", "put_assignments", "put_bundle"]


def newest_bundle(conn: sqlite3.Connection) -> StoredBundle | None:
    """Return the bundle with the highest version, if there is any."""
    row = conn.execute(
        "SELECT b.digest, b.version, f.data FROM bundles b JOIN blobs f ON f.digest = b.digest ORDER BY b.version DESC LIMIT 1"
    ).fetchone()
    return None if row is None else StoredBundle(digest=Digest(row[0]), version=row[1], metadata=row[2])


def put_bundle(conn: sqlite3.Connection, bundle: StoredBundle, files: Mapping[Digest, bytes], at_ns: int) -> None:
    """Keep a verified bundle and its files. Idempotent."""
    contents = [(bundle.digest, bundle.metadata), *files.items()]
    conn.executemany("INSERT OR IGNORE INTO blobs (digest, data) VALUES (?, ?)", contents)
    conn.execute(
        "INSERT OR IGNORE INTO bundles (digest, version, at_ns) VALUES (?, ?, ?)", (bundle.digest, bundle.version, at_ns)
    )


def bundle_metadata(conn: sqlite3.Connection, digest: str) -> bytes | None:
    """Return the signed metadata of a bundle, if it is held."""
    row = conn.execute(
        "SELECT f.data FROM bundles b JOIN blobs f ON f.digest = b.digest WHERE b.digest = ?", (digest,)
    ).fetchone()
    return None if row is None else bytes(row[0])


def blob(conn: sqlite3.Connection, digest: str) -> bytes | None:
    """Return content by digest, if it is held."""
    row = conn.execute("SELECT data FROM blobs WHERE digest = ?", (digest,)).fetchone()
    return None if row is None else bytes(row[0])


def assignments(conn: sqlite3.Connection, node: str | None = None) -> list[StoredAssignment]:
    """Return the newest assignment of every node that has one, or of the one named."""
    where, values = ("WHERE node = ?", (node,)) if node is not None else ("", ())
    rows = conn.execute(
        f"SELECT node, generation, bundle, metadata, at_ns FROM assignments {where} ORDER BY node",  # noqa: S608 - constants
        values,
    )
    return [
        StoredAssignment(node=NodeName(name), generation=generation, bundle=Digest(bundle), metadata=metadata, at_ns=at_ns)
        for name, generation, bundle, metadata, at_ns in rows
    ]


def put_assignments(conn: sqlite3.Connection, new: Sequence[StoredAssignment]) -> None:
    """Keep new assignments; one that does not raise its node's generation changes nothing."""
    conn.executemany(
        "INSERT INTO assignments (node, generation, bundle, metadata, at_ns) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (node) DO UPDATE SET generation = excluded.generation, bundle = excluded.bundle, "
        "metadata = excluded.metadata, at_ns = excluded.at_ns WHERE excluded.generation > generation",
        [(a.node, a.generation, a.bundle, a.metadata, a.at_ns) for a in new],
    )
