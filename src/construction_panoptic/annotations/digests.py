"""Digests of everything that a result depends on: an equal digest means an equal result."""

import json
from hashlib import sha256
from typing import Any

FORMAT = 1  # raised when the same input is converted to something else than before


def digest_of(*parts: Any) -> str:
    """Return the SHA-256 (hexadecimal) of bytes, or of what JSON can hold; anything else in it counts by its text."""
    found = sha256(b"%d" % FORMAT)
    for part in parts:
        content = part if isinstance(part, bytes) else json.dumps(part, sort_keys=True, default=str).encode()
        found.update(len(content).to_bytes(8, "big") + content)
    return found.hexdigest()
