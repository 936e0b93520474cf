"""What commands of ``quoreduce vm`` print."""

from __future__ import annotations

import json
from typing import Any


def show(as_json: bool, known: dict[str, Any], text: str) -> None:
    """Print a result: as one JSON object, or as text."""
    print(json.dumps(known) if as_json else text)
