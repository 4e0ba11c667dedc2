"""A JSON document that says itself whether it is what was written."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def own_checksum(document: Mapping[str, Any]) -> str:
    """sha256 of all that a document says, apart from its own field `sha256`.

    Every format version keeps it in this form, so that a later version is not taken for damage, nor damage for a
    later version.
    """
    said = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
