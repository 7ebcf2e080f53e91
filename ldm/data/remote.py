"""Files behind http(s), read once from beginning to end over connections that may break."""

from __future__ import annotations

import io
import time
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from ldm.errors import UserError

TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 10  # in a row without a byte of progress; the waits between them add up to a minute
LONGEST_WAIT = 30.0
PASSING = (408, 425, 429, 500, 502, 503, 504)  # statuses that may be other ones a moment later


def is_remote(name: str) -> bool:
    """Whether a name is a URL that this module reads."""
    return name.startswith(("http://", "https://"))


def open_remote(url: str) -> io.BufferedReader:
    """The file behind a URL, to be read in order; UserError where it is not there or does not come in ten attempts."""
    return io.BufferedReader(_RemoteFile(url), buffer_size=1 << 18)


def version_of(url: str) -> str:
    """What tells one content of a URL from another: its tag or date, and its size."""
    with retried(url, lambda: urlopen(Request(url, method="HEAD"), timeout=TIMEOUT)) as response:
        headers = response.headers
        return f"{headers.get('ETag') or headers.get('Last-Modified')} {headers.get('Content-Length')}"


def fetch_if_there(url: str) -> bytes | None:
    """The content of a small file; None where the server has none."""
    try:
        with open_remote(url) as file:
            return file.read()
    except MissingError:
        return None


class MissingError(UserError):
    """The server answers that there is no such file."""


def retried(url: str, ask: Any) -> Any:
    """What `ask()` returns, asked again while it fails in a way that may pass."""
    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except (HTTPException, OSError) as error:
            wait_or_give_up(url, error, attempt)
    raise AssertionError("the last attempt returns or raises")


def wait_or_give_up(url: str, error: Exception, attempt: int) -> None:
    """Sleep, longer after each attempt; UserError for what waiting does not mend, and after the last attempt."""
    if isinstance(error, HTTPError) and error.code not in PASSING:
        kind = MissingError if error.code in (404, 410) else UserError
        raise kind(f"{url}: the server answers {error.code} {error.reason}") from error
    if attempt + 1 >= ATTEMPTS:
        reason = error.reason if isinstance(error, URLError) else str(error) or type(error).__name__
        raise UserError(f"{url} does not come after {ATTEMPTS} attempts: {reason}") from error
    time.sleep(min(LONGEST_WAIT, 0.1 * 2**attempt))


class _RemoteFile(io.RawIOBase):
    """Goes on where a connection broke, with a Range request, and notices if the file has changed meanwhile."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._response: HTTPResponse | None = None
        self._at, self._size, self._failures = 0, -1, 0
        self._tag: str | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while self._at != self._size:
            try:
                if self._response is None:
                    self._response = self._connect()
                count = self._response.readinto(buffer)
                if count:
                    self._at, self._failures = self._at + count, 0
                    return count
                if self._size < 0:  # the server never told the size, so this is the end
                    return 0
                raise ConnectionError("the connection was closed early")
            except (HTTPException, OSError) as error:
                self._disconnect()
                wait_or_give_up(self.url, error, self._failures)
                self._failures += 1
        return 0

    def _connect(self) -> HTTPResponse:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        response = urlopen(Request(self.url, headers=headers), timeout=TIMEOUT)
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if self._at and tag != self._tag:
            raise UserError(f"{self.url} has changed while it was read")
        self._tag = tag
        length = response.headers.get("Content-Length")
        if response.status == 206:
            return response
        self._size = -1 if length is None else int(length)
        skipped = 0
        while skipped < self._at:  # a server that knows no ranges begins anew
            found = len(response.read(min(1 << 18, self._at - skipped)))
            if not found:
                raise ConnectionError("the connection was closed early")
            skipped += found
        return response

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def close(self) -> None:
        self._disconnect()
        super().close()
