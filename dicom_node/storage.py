"""Bytes -> durable file. Nothing is visible under its final name before it is safe on the disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dicom_node import marks
from dicom_node.errors import FileGone, InvalidUID, OutOfSpace, StorageError

# PS3.5 9.1: components of digits joined by dots, at most 64 characters. It forbids leading zeros too, but devices
# that write them exist, and they do no harm in a path.
_UID = re.compile(r"[0-9]+(\.[0-9]+)+", re.ASCII)
_TEMPORARY = ".part"


def checked_uid(uid: object, name: str) -> str:
    """`uid` as text, safe as a file name. Raises InvalidUID, whose text never repeats a hostile value."""
    text = str(uid or "")
    if len(text) > 64 or not _UID.fullmatch(text):
        what = "is empty" if not text else f"is no valid UID ({len(text)} characters)"
        raise InvalidUID(f"{name} {what}")
    return text


def instance_path(study_uid: str, series_uid: str, sop_instance_uid: str) -> str:
    """Where a received Instance lies below the storage root. Raises InvalidUID."""
    folder = f"incoming/{checked_uid(study_uid, 'StudyInstanceUID')}/{checked_uid(series_uid, 'SeriesInstanceUID')}"
    return f"{folder}/{checked_uid(sop_instance_uid, 'SOPInstanceUID')}.dcm"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A durable file. `path` is relative to the storage root."""

    path: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DueFile:
    """A file to write below the storage root, its bytes being `parts` joined. received_at: seconds since the epoch."""

    path: str
    parts: tuple[bytes, ...]
    received_at: float


class Storage:
    """The storage root: incoming/<study>/<series>/<sop>.dcm and results/<job>/<name>."""

    def __init__(self, root: Path, *, min_free_gb: float = 0.0) -> None:
        self.root = root.absolute()
        self._mark: marks.Mark | None = None
        self._marking = threading.Lock()
        self.keep_free(min_free_gb)
        try:
            for folder in (".", "incoming", "results"):
                (self.root / folder).mkdir(parents=True, exist_ok=True, mode=0o750)
        except OSError as err:
            raise StorageError(f"storage.root cannot be written to: {err.strerror}") from err

    def keep_free(self, min_free_gb: float) -> None:
        """So much of the disk is left alone from now on."""
        self._min_free_bytes = int(min_free_gb * 1e9)

    def path(self, relative: str) -> Path:
        return self.root / relative

    # -- who receives ------------------------------------------------------------------------------

    @property
    def mark(self) -> marks.Mark:
        """This process's, as one that receives; taken when it is first asked for. Raises StorageError."""
        with self._marking, _as_storage_error():
            if self._mark is None:
                self._mark = marks.Mark(self.root)
            return self._mark

    def keep_mark(self) -> None:
        """To be called now and then: a machine that was cut off for longer than its locks last gets a new one."""
        with self._marking, _as_storage_error():
            if self._mark is not None and not self._mark.stands():
                self._mark = marks.Mark(self.root)

    def living_marks(self) -> frozenset[str]:
        """Those of all processes that receive here, on any machine. To be asked after what they left was listed."""
        with _as_storage_error():
            return marks.living(self.root)

    # -- files -------------------------------------------------------------------------------------

    def holds(self, relative: str, size_bytes: int) -> bool:
        """Whether the file is there at its full size."""
        try:
            return self.path(relative).stat().st_size == size_bytes
        except FileNotFoundError:
            return False

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def check_space(self, incoming_bytes: int = 0) -> None:
        """Raises OutOfSpace when fewer bytes than the watermark would be left."""
        free = self.free_bytes()
        if free - incoming_bytes < self._min_free_bytes:
            raise OutOfSpace(
                f"{free / 1e9:.1f} GB free, storage.min_free_gb is {self._min_free_bytes / 1e9:.1f}: free some space"
            )

    def write_instance(self, study_uid: str, series_uid: str, sop_instance_uid: str, *parts: bytes) -> StoredFile:
        """The received file, durable on return; one that is there already with equal bytes is left alone."""
        path = instance_path(study_uid, series_uid, sop_instance_uid)
        return self._write(path, *parts, keep_free=True, mark=self.mark.name)

    def write_instances(self, due: Iterable[DueFile]) -> list[StoredFile | None]:
        """Files of Instances that are safe elsewhere, all durable on return; their time is that of reception.

        None for one that was left alone, since a newer file with other bytes is there.
        """
        folders: dict[Path, None] = {}
        written: list[StoredFile | None] = []
        mark = self.mark.name
        with _as_storage_error():
            for one in due:
                stored, final = _described(one.path, one.parts), self.root / one.path
                same = _same_file(final, stored)
                if not same and _is_newer(final, one.received_at):
                    written.append(None)
                    continue
                written.append(stored)
                folders[final.parent] = None
                if not same:
                    _make_durable_folder(final.parent, self.root)
                    _rename_durable(final, one.parts, one.received_at, mark)
            for folder in folders:
                sync_folder(folder)
        return written

    def write_result(self, job_id: str, name: str, data: bytes) -> StoredFile:
        """A result file of a job. The same bytes again change nothing.

        The watermark does not hold it up: what stays free is there to finish what was acknowledged.
        """
        series_uid, _, digest = job_id.partition("-")
        checked_uid(series_uid, "job id")
        if not digest.isalnum() or not re.fullmatch(r"[a-z0-9_]+\.[a-z0-9]+", name):
            raise ValueError("not a job id or a result's name")
        return self._write(f"results/{job_id}/{name}", data)

    def write_shadow(self, job_id: str, name: str, data: bytes) -> StoredFile:
        """A file of what a second model made of a job's input; beside the results and never among them."""
        checked_uid(job_id.partition("-")[0], "job id")
        if not job_id.partition("-")[2].isalnum() or not re.fullmatch(r"[a-z0-9_]+\.(png|npz)", name):
            raise ValueError("not a job id or a name of a picture or of masks")
        return self._write(f"results/{job_id}/shadow/{name}", data, keep_free=True)

    def write_prior(self, folder: str, name: str, *parts: bytes) -> StoredFile:
        """A file of an earlier CT, durable on return, in a folder of `prior_folder`."""
        return self._write(f"{folder}/{name}", *parts, keep_free=True)

    def prior_folder(self, job_id: str) -> str:
        """A name below the job's results that nobody else has: who else looks for the same must not meet us there."""
        return f"results/{job_id}/prior_{uuid.uuid4().hex}"

    def link(self, sources: Mapping[str, Path], folder: str) -> int:
        """The same files by further names in `folder`, durable on return, so that they stay when the first names go.

        sources: name -> file. The bytes that it took: none but where the file system has no hard links. Raises
        FileGone where a file is not there any more.
        """
        copied = 0
        with _as_storage_error():
            _make_durable_folder(self.root / folder, self.root)
            for name, source in sources.items():
                copied += _link(source, self.root / folder / name)
            sync_folder(self.root / folder)
        return copied

    def _write(self, relative: str, *parts: bytes, keep_free: bool = False, mark: str = "") -> StoredFile:
        stored = _described(relative, parts)
        final = self.root / relative
        with _as_storage_error():
            if _same_file(final, stored):
                # Whoever wrote it may have been killed before the folder's flush.
                sync_folder(final.parent)
                return stored
            if keep_free:
                self.check_space(stored.size_bytes)
            _make_durable_folder(final.parent, self.root)
            _rename_durable(final, parts, mark=mark)
            sync_folder(final.parent)
        return stored

    def sweep(self) -> int:
        """Remove the temporary files of received Instances whose writer is dead, on whichever machine it ran."""
        left = list((self.root / "incoming").rglob(f".*{_TEMPORARY}"))
        # Only now: who marked such a file had its mark before.
        living = self.living_marks() if left else frozenset()
        removed = 0
        for path in left:
            if path.name[1:].partition("-")[0] not in living:
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                    removed += 1
        return removed

    def discard(self, relative: str) -> None:
        """Remove a folder in one step as far as others see it; what a crash leaves goes with `Discarded.sweep`."""
        rubbish = self.root / "discarded" / uuid.uuid4().hex
        rubbish.parent.mkdir(exist_ok=True, mode=0o750)
        with contextlib.suppress(FileNotFoundError):
            (self.root / relative).rename(rubbish)
            shutil.rmtree(rubbish, ignore_errors=True)

    def old_results(self, before: float) -> list[str]:
        """The jobs whose folder of results did not change since."""
        return sorted(entry.name for entry in os.scandir(self.root / "results") if entry.stat().st_mtime < before)

    def sweep_empty(self, before: float) -> int:
        """Remove the folders of studies that are empty since that time. How many."""
        removed = 0
        for entry in os.scandir(self.root / "incoming"):
            # An empty one only: who puts something into it meanwhile keeps it.
            with contextlib.suppress(OSError):
                if entry.stat().st_mtime < before:
                    Path(entry.path).rmdir()
                    removed += 1
        return removed

    def incoming_files(self) -> Iterator[str]:
        """Relative paths of all received files."""
        for path in sorted((self.root / "incoming").rglob("*.dcm")):
            yield str(path.relative_to(self.root))


@contextlib.contextmanager
def _as_storage_error() -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfSpace("the disk is full: free some space under storage.root") from err
        raise StorageError(f"a file could not be made durable: {err.strerror}") from err


def _described(relative: str, parts: tuple[bytes, ...]) -> StoredFile:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return StoredFile(path=relative, sha256=digest.hexdigest(), size_bytes=sum(map(len, parts)))


def _link(source: Path, final: Path) -> int:
    """The bytes that it took."""
    try:
        os.link(source, final)
    except FileExistsError:
        return 0
    except FileNotFoundError as err:
        raise FileGone("a file was purged meanwhile") from err
    except OSError:  # a file system without hard links, or with all that it can have of this file
        data = source.read_bytes()
        _rename_durable(final, (data,))
        return len(data)
    return 0


def _is_newer(final: Path, received_at: float) -> bool:
    try:
        return final.stat().st_mtime > received_at
    except FileNotFoundError:
        return False


def _same_file(final: Path, stored: StoredFile) -> bool:
    try:
        if final.stat().st_size != stored.size_bytes:
            return False
        with final.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == stored.sha256
    except FileNotFoundError:
        return False


def _make_durable_folder(folder: Path, root: Path) -> None:
    """Make `folder`; each new one's entry in its parent is flushed too, else a power cut could lose the branch."""
    missing = []
    while folder != root and not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for new in reversed(missing):
        new.mkdir(exist_ok=True, mode=0o750)
        sync_folder(new.parent)


def _rename_durable(final: Path, parts: tuple[bytes, ...], received_at: float | None = None, mark: str = "") -> None:
    """The flushed bytes under their final name; the folder is still to be flushed. mark: whose temporary file it is."""
    # Two Associations may bring the same instance at once: each has a temporary name of its own.
    temporary = final.with_name(f".{mark}-{uuid.uuid4().hex}{_TEMPORARY}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[file.write(view) :]
            if received_at is not None:
                os.utime(file.fileno(), (received_at, received_at))
            os.fsync(file.fileno())
        temporary.replace(final)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Its entries are on the disk when it returns. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
