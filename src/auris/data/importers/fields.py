"""Fields of a row in any format, and checks of their values that all formats share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from auris.errors import UserError, shorten

Fields = Mapping[str, Any]
"""The fields of a row as its file stores them: JSON values by name, in any known format."""


def require_messages(name: str, value: Any) -> list[Any]:
    """Return a field that must be a list of messages. Raises UserError for any other value and for an empty list."""
    if not isinstance(value, list) or not value:
        raise UserError(f"`{name}` is {shorten(value)}, expected a list of messages")
    return value
