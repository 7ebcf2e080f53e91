"""Local and remote files: http(s) URLs, and `s3://`, `gs://`, `hf://` and others that `fsspec` opens."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ldm.data.walk import walk
from ldm.errors import UserError

T = TypeVar("T")

TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 10  # in a row; the waits between them add up to a minute
LONGEST_WAIT = 30.0
TEMPORARY = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses worth another attempt
FIRST_BLOCK, LARGEST_BLOCK, SMALLEST_BLOCK = 1 << 20, 1 << 24, 1 << 16  # bytes of one request
VERSION_FIELDS = ("ETag", "etag", "Last-Modified", "LastModified", "mtime", "blob_id")  # of fsspec's file systems


class MissingError(UserError):
    """There is no file of that name."""


def is_remote(name: str) -> bool:
    """Return whether a name is a URL and not a local file or folder."""
    return "://" in name and not os.path.exists(name)


def open_file(name: str) -> BinaryIO:
    """Open a file for reading from its beginning.

    Raises:
        UserError: if a remote file is missing or cannot be reached, now or while it is read.
    """
    if is_remote(name):
        return io.BufferedReader(_RemoteFile(name), buffer_size=1 << 18)
    return open(name, "rb")


def read_if_present(name: str) -> bytes | None:
    """Read a small file; None where there is none."""
    try:
        with open_file(name) as file:
            return file.read()
    except (FileNotFoundError, MissingError):
        return None


def version_of(name: str) -> str:
    """Identify the content of a file by its tag or modification time, and its size."""
    if is_remote(name):
        return _version(_retried(name, lambda fs, path: fs.info(path)))
    status = os.stat(name)
    return f"{status.st_mtime_ns} {status.st_size}"


def list_files(folder: str, below: bool = True) -> dict[str, int | None]:
    """Map names of the files in a folder, relative to it, to sizes in bytes (None for local files).

    Args:
        below: whether to include files in folders below it.
    """
    if not is_remote(folder):
        if below:
            return dict.fromkeys(walk(Path(folder)).files)
        return {path.name: None for path in Path(folder).iterdir() if not path.is_dir()}

    def find(fs: Any, path: str) -> dict[str, int | None]:
        prefix = path.rstrip("/") + "/"
        infos = fs.find(path, maxdepth=None if below else 1, detail=True)
        return {name.removeprefix(prefix): info.get("size") for name, info in infos.items()}

    return _retried(folder, find)


class _RemoteFile(io.RawIOBase):
    """Read a remote file in order, by requests for ranges of bytes; those that fail are repeated and made smaller."""

    def __init__(self, url: str) -> None:
        self.url = url
        info = _retried(url, lambda fs, path: fs.info(path))
        self._version, self._size = _version(info), info.get("size")
        self._at = self._requests = 0
        self._block, self._largest = FIRST_BLOCK, LARGEST_BLOCK
        self._fetched = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._fetched:
            self._fetched = memoryview(self._next_block())
        count = min(len(buffer), len(self._fetched))
        buffer[:count] = self._fetched[:count]
        self._fetched = self._fetched[count:]
        return count

    def _next_block(self) -> bytes:
        if self._at == self._size:
            if self._requests > 1 and version_of(self.url) != self._version:
                raise UserError(f"{self.url} has changed while it was read: start the command again")
            return b""
        self._requests += 1
        content: bytes = _retried(self.url, self._request, self._shrink)
        self._at += len(content)
        self._block = min(2 * self._block, self._largest)
        return content

    def _request(self, fs: Any, path: str) -> bytes:
        if self._size is None:  # the server does not say
            content: bytes = fs.cat_file(path)
            self._size = len(content)
            return content
        end = min(self._at + self._block, self._size)
        content = fs.cat_file(path, start=self._at, end=end)
        if len(content) > end - self._at:  # the server sent the whole file
            return content[self._at :]
        if not content:
            raise ConnectionError("the connection was closed early")
        return content

    def _shrink(self) -> None:
        """Request less after a failure, so that connections that break early still make progress."""
        self._requests += 1
        self._block = self._largest = max(SMALLEST_BLOCK, self._block // 2)


def _version(info: dict[str, Any]) -> str:
    return f"{next((info[name] for name in VERSION_FIELDS if info.get(name)), None)} {info.get('size')}"


def _retried(url: str, ask: Callable[[Any, str], T], failed: Callable[[], None] = lambda: None) -> T:
    """Return `ask(file system, path)`, asked again after temporary failures."""
    for attempt in range(ATTEMPTS):
        try:
            return ask(*_file_system(url))
        except UserError:
            raise
        except Exception as error:  # libraries behind fsspec raise other types
            _wait_or_give_up(url, error, attempt)
            failed()
    raise AssertionError("the last attempt returns or raises")


def _file_system(url: str) -> tuple[Any, str]:
    import fsspec

    if not url.startswith(("http://", "https://")):
        return fsspec.core.url_to_fs(url)
    from aiohttp import ClientTimeout

    # trust_env: use the proxies of the environment. Not `url_to_fs`, which would split the URL at "::".
    timeout = ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
    return fsspec.filesystem("http", client_kwargs={"timeout": timeout, "trust_env": True}), url


def _wait_or_give_up(url: str, error: Exception, attempt: int) -> None:
    """Sleep, longer after each attempt; raise UserError for permanent failures and after the last attempt."""
    from aiohttp import ClientError

    cause = error.__cause__ or error  # fsspec raises FileNotFoundError from whatever happened
    status = getattr(cause, "status", None)
    words = " ".join(str(error if isinstance(error, ImportError) else cause).split()) or type(cause).__name__
    if status is not None and status not in TEMPORARY:
        kind = MissingError if status in (404, 410) else UserError
        raise kind(f"{url}: the server answers {status} {getattr(cause, 'message', '')}".rstrip()) from error
    if isinstance(error, FileNotFoundError) and not isinstance(cause, ClientError | TimeoutError | ConnectionError):
        raise MissingError(f"{url}: there is no such file") from error
    if isinstance(error, ImportError | ValueError | PermissionError | NotImplementedError):
        raise UserError(f"{url} cannot be opened: {words}") from error
    if attempt + 1 >= ATTEMPTS:
        raise UserError(f"{url} cannot be read after {ATTEMPTS} attempts: {words}") from error
    time.sleep(min(LONGEST_WAIT, 0.1 * 2**attempt))
