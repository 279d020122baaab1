"""Folders on their way out of the storage root: out of sight in one step, then deleted; or back, where rows stayed.

A crash between the two leaves them in `discarded/`, each under the path that it came from, until somebody who knows the
rows settles what becomes of them.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

_FOLDER = "discarded"
# What is to come back if its rows did not go. All else there is rubbish.
_ASIDE = "aside-"


class Discarded:
    """The folder `discarded/` below a storage root."""

    def __init__(self, root: Path) -> None:
        self._root, self._bin = root, root / _FOLDER

    def set_aside(self, folders: Iterable[str]) -> str:
        """Takes folders out of sight; the name under which `clear` and `put_back` know them.

        Raises OSError where one of them can't be moved: then all are where they were.
        """
        name = f"{_ASIDE}{uuid.uuid4().hex}"
        (self._bin / name).mkdir(parents=True, mode=0o750)
        try:
            for folder in folders:
                target = self._bin / name / folder
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                with contextlib.suppress(FileNotFoundError):
                    (self._root / folder).rename(target)
        except OSError:
            # What can't go back now does with the next `settle`, for its rows are there.
            with contextlib.suppress(OSError):
                self.put_back(name, self.files(name))
                self._remove(self._bin / name)
            raise
        return name

    def aside(self) -> list[str]:
        """All names of `set_aside` that are not cleared: of purges that run just now, or that were killed."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in self._bin.iterdir() if path.name.startswith(_ASIDE))
        return []

    def files(self, name: str) -> list[str]:
        """Where each file of it was, relative to the storage root."""
        folder = self._bin / name
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def header_file(self, name: str) -> Path | None:
        """A received file among them, which tells whose they are."""
        return next((self._bin / name).glob("incoming/*/*/*.dcm"), None)

    def put_back(self, name: str, files: Iterable[str]) -> int:
        """These of its files are where they were; one that came again meanwhile stays. How many came back.

        Raises OSError.
        """
        back = 0
        for path in files:
            target = self._root / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
                (self._bin / name / path).rename(target)
                back += 1
        return back

    def clear(self, name: str) -> None:
        """Deletes it. What cannot be deleted now is rubbish for a later `sweep`: nobody hears of it again."""
        self._remove(self._bin / name)

    def _remove(self, folder: Path) -> None:
        rubbish = self._bin / folder.name.removeprefix(_ASIDE)
        with contextlib.suppress(FileNotFoundError):
            folder.rename(rubbish)
        shutil.rmtree(rubbish, ignore_errors=True)

    def sweep(self) -> int:
        """Deletes what others threw away and were killed before it was gone. How many folders that were."""
        with contextlib.suppress(FileNotFoundError):
            rubbish = [path for path in self._bin.iterdir() if not path.name.startswith(_ASIDE)]
            for path in rubbish:
                shutil.rmtree(path, ignore_errors=True)
            return len(rubbish)
        return 0
