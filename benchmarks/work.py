"""What a study keeps on disk, between rows and after a kill: scores of units, so that rows that share them score once.

A file is named by a hash of all that decides what is in it; beside it stands, as JSON, what that was and the seconds
that it took. Scores hold for one model, one text, one config and one state of the code that makes them. Other things
that rows share, as the dense stream, may be kept in the same way: by `WorkFolder.file`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from optimum_moreau.errors import PlanError
from optimum_moreau.files import write_json
from optimum_moreau.scoring.scores import UnitScores

PACKAGE = Path(__file__).parents[1] / "optimum_moreau"
ROOMS = "criteria", "data", "envelope", "models", "scoring"  # whose code decides scores
STUDIES = Path("~/.cache/optimum-moreau/studies").expanduser()


@dataclass(frozen=True)
class WorkFolder:
    """The folder of one study, outside the repository."""

    folder: Path

    def file(self, kind: str, decides: dict[str, Any], suffix: str) -> Path:
        """The place of what is decided so; its folder is there then."""
        name = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode()).hexdigest()[:16]
        (folder := self.folder / kind).mkdir(parents=True, exist_ok=True)
        return folder / f"{name}{suffix}"


class KeptScores(dict):
    """Key → scores and the seconds of making them, as `measures.prune` asks for; those of units are kept on disk too.

    Args:
        work: where.
        about: what decides them beside the key: model, text.
    """

    def __init__(self, work: WorkFolder, about: dict[str, Any]) -> None:
        super().__init__()
        self.work, self.about = work, about

    def _places(self, key: str) -> tuple[Path, Path]:
        decided = json.loads(key)
        rooms = (*ROOMS, "budgets") if any(decided.get("budget") or ()) else ROOMS
        decides = {**self.about, "config": decided, "code": code_of(rooms)}
        return self.work.file("scores", decides, ".safetensors"), self.work.file("scores", decides, ".json")

    def __contains__(self, key: Any) -> bool:
        """Whether there are any, here or on disk."""
        if super().__contains__(key):
            return True
        scores, record = self._places(key)
        if not record.is_file():
            return False
        try:
            found = UnitScores.load(scores), json.loads(record.read_text(encoding="utf-8"))["seconds"]
        except (PlanError, ValueError, KeyError):  # damaged: they are made again
            return False
        super().__setitem__(key, found)
        return True

    def __setitem__(self, key: str, made: tuple[Any, float]) -> None:
        """Keeps what was made."""
        super().__setitem__(key, made)
        if isinstance(made[0], UnitScores):  # those of single weights are as large as the model
            scores, record = self._places(key)
            made[0].save(scores)
            write_json(record, {"seconds": made[1], **self.about, "config": json.loads(key)})  # last: they are whole


@cache
def code_of(rooms: tuple[str, ...]) -> str:
    """A hash of the source of some rooms, as it was at first."""
    digest = hashlib.sha256()
    for file in sorted(file for room in rooms for file in (PACKAGE / room).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def hash_of(documents: Iterable[str]) -> str:
    """Of a text."""
    return hashlib.sha256("\0".join(documents).encode(errors="surrogatepass")).hexdigest()[:16]
