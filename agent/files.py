"""Files that survive kill -9 and power cuts: whole or not there, locked while alive."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, no quota, beyond the largest file allowed
FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class DiskError(Exception):
    """The disk did not take what was written; names the path, and what to do about it."""

    def __init__(self, path: Path, error: OSError) -> None:
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        super().__init__(
            f"{path} could not be written: {error.strerror}. {_remedy(folder, error.errno)}, then go on with "
            "the same command and --resume; what was written before is safe"
        )


def _remedy(folder: Path, number: int | None) -> str:
    if number in FULL:
        free = shutil.disk_usage(folder).free / 2**20
        return f"{free:.1f} MiB are free in {folder}. Free some space"
    if number in FORBIDDEN:
        return f"`ls -ld {folder}` shows who may write there. Become its owner or change its rights"
    return f"Look at {folder} and at what the system says of its disk (`dmesg | tail`)"


@contextmanager
def disk_errors(path: Path, kind: type[DiskError] = DiskError) -> Iterator[None]:
    """Turns an OSError while writing to `path` into one that says what to do."""
    try:
        yield
    except OSError as error:
        raise kind(path, error) from error


class GrowingFile:
    """A new file that holds its own lock, hashes what it is given and grows by whole commits."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.hash = hashlib.sha256()
        self.dirty = False
        self._pending = bytearray()
        self._size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        # Locked before it has its name: what is found under that name and is not locked is not alive.
        fresh = path.with_name(path.name + ".new")
        self._handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.rename(fresh, path)

    def write(self, data: bytes) -> int:
        """Keeps data until `commit`."""
        self._pending += data
        return len(data)

    def tell(self) -> int:
        """The size including what is not committed."""
        return self._size + len(self._pending)

    def commit(self) -> None:
        """Hands everything to the operating system; on an error nothing of it stays in the file."""
        data = bytes(self._pending)
        try:
            write_all(self._handle, data)
        except OSError:
            os.ftruncate(self._handle, self._size)
            raise
        self.hash.update(data)
        self._size += len(data)
        self._pending.clear()
        self.dirty = self.dirty or bool(data)

    def sync(self) -> None:
        """Returns once everything committed would survive a power cut."""
        if self.dirty:
            os.fsync(self._handle)
            self.dirty = False

    def publish(self, target: Path) -> None:
        """Gives the file its final name, durably."""
        self.sync()
        os.rename(self.path, target)
        sync_folder(target.parent)
        self.path = target

    def discard(self) -> None:
        """Removes the file."""
        self.path.unlink()

    def close(self) -> None:
        """Releases file and lock; the second time nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def write_all(handle: int, data: bytes) -> None:
    """os.write may take a part only, on a nearly full disk."""
    written = 0
    while written < len(data):
        written += os.write(handle, data[written:])


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


Content = bytes | str | Callable[[IO[bytes]], object]


def write_atomic(path: Path, data: Content, *, durable: bool = True) -> None:
    """Replaces a file by bytes, text, or what a function writes: readers see the old or the new.

    Not `durable`, it costs no fsync: enough for heartbeats, which a power cut makes worthless anyway.
    Raises DiskError.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with disk_errors(path):
        try:
            with temporary.open("wb") as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        if durable:
            sync_folder(path.parent)


@contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Whether nobody holds the lock of an existing file; nobody else can take it meanwhile."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


def append_row(path: Path, row: Mapping[str, Any], *, durable: bool = True) -> None:
    """Adds one JSON line to a file by a single write; a torn last line gives way. Raises DiskError."""
    line = (to_json(row) + "\n").encode()
    with disk_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            drop_torn_line(handle)
            size = os.fstat(handle).st_size
            try:
                write_all(handle, line)
            except OSError:
                os.ftruncate(handle, size)
                raise
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)


def drop_torn_line(handle: int) -> None:
    """Cuts off what a killed process left of a line."""
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b"\n":
        os.ftruncate(handle, os.pread(handle, size, 0).rfind(b"\n") + 1)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The whole JSON lines of a file; torn and damaged ones are left out. Empty when there is no file."""
    return list(numbered_rows(path).values())


def numbered_rows(path: Path) -> dict[int, dict[str, Any]]:
    """As `read_rows`, by the number of the line, counted from 1."""
    if not path.exists():
        return {}
    rows = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows[number] = row
    return rows


def to_json(value: Any) -> str:
    """JSON of plain values, paths, numpy numbers and arrays; the same text on every run."""
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
