"""What has been done with which inputs, in one JSON file, so that a stopped run does not repeat it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dekr_infer.errors import DekrError
from dekr_infer.storage.atomic import read_json, sha256, write_json


class Stages:
    """Named stages of a long run; each has inputs and a result, both of which JSON can hold."""

    def __init__(self, path: Path) -> None:
        """Read what an earlier run left.

        Raises:
            DekrError: there is a file of another form.
        """
        self.path = path
        self.known: dict[str, dict[str, Any]] = {}
        if path.exists():
            known = read_json(path)
            entries = known.values() if isinstance(known, dict) else [None]
            if not all(isinstance(entry, dict) and {"inputs", "result"} <= set(entry) for entry in entries):
                raise DekrError(f"{path}: not a record of stages; delete it, and what was done is done again")
            self.known = known

    def do(self, name: str, inputs: dict[str, Any], work: Callable[[], Any], makes: Path | None = None) -> Any:
        """The result of a stage: of now, or of an earlier run when the inputs are the same.

        Args:
            makes: the file that the work makes; when it is not as it was left, the work is done again.
        """
        inputs = json.loads(json.dumps(inputs))
        known = self.known.get(name)
        if known and known["inputs"] == inputs and known.get("sha256") == _digest(makes):
            print(f"{name}: done before", flush=True)
            return known["result"]
        if self.known.pop(name, None):
            self._write()
        print(f"== {name}", flush=True)
        result = work()
        self.known[name] = {"inputs": inputs, "result": result, "sha256": _digest(makes)}
        self._write()
        return result

    def _write(self) -> None:
        write_json(self.path, self.known, indent=1)


def _digest(path: Path | None) -> str | None:
    return sha256(path) if path is not None and path.is_file() else None
