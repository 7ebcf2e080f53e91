"""Locks of folders, so that one training at a time writes to a run."""

from __future__ import annotations

import fcntl
import os
import weakref
from pathlib import Path

from ldm.errors import UserError


class FolderLock:
    """A lock that this process holds on a folder until the object is deleted."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle  # of the folder; None: no lock

    def close(self) -> None:
        """Release the lock; in a forked process, leave it to the parent."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    __del__ = close


_held: weakref.WeakValueDictionary[tuple[int, int], FolderLock] = weakref.WeakValueDictionary()  # by device and inode


def lock_folder(folder: Path) -> FolderLock:
    """Lock a folder, or share the lock that this process holds already.

    Raises:
        UserError: if another process has locked it.
    """
    handle = os.open(folder, os.O_RDONLY)
    status = os.fstat(handle)
    place = status.st_dev, status.st_ino
    if (held := _held.get(place)) is not None:
        os.close(handle)
        return held
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"another training writes to {folder}: wait until it ends, or choose another --out. Start several "
            "processes of one training with torchrun, see docs/training.md"
        ) from None
    except OSError:  # a file system without such locks
        os.close(handle)
        return FolderLock(None)
    _held[place] = lock = FolderLock(handle)
    return lock


def _leave_to_parent() -> None:
    for lock in list(_held.values()):
        lock.close()


os.register_at_fork(after_in_child=_leave_to_parent)  # loader processes may outlive this one for seconds
