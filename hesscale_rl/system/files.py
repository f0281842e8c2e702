"""Files that are replaced as a whole, and JSON that every reader understands."""

import json
import math
import os
from pathlib import Path
from typing import Any


def atomic_write(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`: a crash at any moment leaves the old content or the new, never a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut could keep the new name and lose the content
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def jsonable(value: Any) -> Any:
    """Spell out what JSON cannot hold, at any depth: non-finite numbers and unknown objects become strings."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def json_bytes(content: dict[str, Any]) -> bytes:
    """Return one JSON object, indented for people."""
    return (json.dumps(jsonable(content), indent=2, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON object atomically."""
    atomic_write(path, json_bytes(content))
