"""Types of fields in messages of the link: each has a bound. What has none here is checked after decoding (``frames``)."""

from __future__ import annotations

from typing import Annotated

import msgspec

from garrison.common import limits

__all__ = ["CountField", "HexField", "IntField", "StrField"]

StrField = Annotated[str, msgspec.Meta(max_length=limits.STRING_MAX_CHARS)]
HexField = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[0-9a-f]*\Z")]  # not $, which lets a newline through
CountField = Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]  # SQLite's numbers end there
IntField = Annotated[int, msgspec.Meta(ge=-(1 << 31), le=(1 << 31) - 1)]
