"""Every error that garrison raises on purpose, by cause.

Rules of this file:
- One root, ``GarrisonError``; one family per cause, so that a caller catches what it can handle and nothing else.
- Errors carry fields; the text is built from them. ``hint`` is the remedy, shown to a person on a line of its own.
- Only ``garrison.cli`` prints errors; it walks ``__cause__`` so no layer repeats the text of the one below.
"""

from __future__ import annotations

import os

__all__ = [
    "BackendUnsupportedError",
    "BundleError",
    "CompileError",
    "ConfigError",
    "FrameError",
    "GarrisonError",
    "InventoryError",
    "KernelError",
    "LinkError",
    "PolicyError",
    "QuarantinedError",
    "SignatureError",
    "SpoolError",
    "StoreError",
]


class GarrisonError(Exception):
    """Root of all errors raised on purpose.

    Attributes:
        hint: What the operator can do about it; empty when nothing general can be said.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class ConfigError(GarrisonError, ValueError):
    """A configuration file, flag or environment variable is wrong."""


class PolicyError(GarrisonError, ValueError):
    """A policy document that people wrote is wrong.

    Attributes:
        file: Path as the caller gave it, or ``<string>``.
        line: One-based line, 0 when unknown.
        key: Dotted key path inside the document, e.g. ``spec.process.matchPaths[0].path``; empty for the document.
    """

    def __init__(self, message: str, *, file: str = "<string>", line: int = 0, key: str = "", hint: str = "") -> None:
        where = f"{file}:{line}" if line else file
        super().__init__(f"{where}: {key}: {message}" if key else f"{where}: {message}", hint=hint)
        self.reason, self.file, self.line, self.key = message, file, line, key


class CompileError(GarrisonError):
    """A RuleSet cannot be turned into a backend's program."""


class SignatureError(GarrisonError):
    """Signed metadata or a signed file failed verification; whatever was trusted before still is."""


class BundleError(GarrisonError):
    """A bundle or assignment is malformed, incomplete, for another node, or older than what is held."""


class QuarantinedError(BundleError):
    """An assignment that failed on this node before is not tried again.

    Attributes:
        generation: Its generation.
        bundle: Its bundle.
    """

    def __init__(self, message: str, *, generation: int, bundle: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.generation, self.bundle = generation, bundle


class BackendUnsupportedError(GarrisonError):
    """An enforcement backend cannot work on this kernel or cannot do what was asked."""


class KernelError(GarrisonError, OSError):
    """A system call failed.

    Attributes:
        errno: The kernel's error number.
        operation: What was attempted, e.g. ``fanotify_mark(/etc/shadow)``.
    """

    def __init__(self, errno: int, operation: str, *, hint: str = "") -> None:
        GarrisonError.__init__(self, f"{operation}: {os.strerror(errno)}", hint=hint)
        self.errno, self.operation = errno, operation


class SpoolError(GarrisonError):
    """The node's spool cannot take, keep or give back an event."""


class FrameError(GarrisonError, ValueError):
    """Bytes from the wire are not a frame that this side accepts; the peer is told and nothing is applied."""


class LinkError(GarrisonError):
    """The link between minion and master failed, or a peer refused."""


class StoreError(GarrisonError):
    """The master's store cannot answer or commit."""


class InventoryError(GarrisonError, ValueError):
    """The inventory cannot be read, or a host pattern matches nothing."""
