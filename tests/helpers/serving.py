"""A local file server with the failures of a bad network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """Serve `folder`; drop every `drop_every`-th connection, alternately before the response and within a file."""

    daemon_threads = True

    def __init__(self, folder: Path, drop_every: int = 0, ranges: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.drop_every, self.ranges = folder, drop_every, ranges
        self.lock, self.connections, self.dropped, self.resumed = threading.Lock(), 0, 0, 0
        self.at_most: int | None = None  # bytes per connection
        self.busy = 0  # number of following requests to answer with 503

    @property
    def url(self) -> str:
        """The URL of the folder."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_content=False)

    def do_GET(self) -> None:
        self._answer(with_content=True)

    def _answer(self, with_content: bool) -> None:
        server = self.server
        with server.lock:
            server.connections += 1
            drop = bool(server.drop_every) and server.connections % server.drop_every == 0
            server.dropped += drop
            early = drop and server.dropped % 2 == 1
            busy, server.busy = server.busy > 0, max(0, server.busy - 1)
        path = server.folder / self.path.lstrip("/")
        if early:
            return  # closed without a response
        if busy or not path.is_file():
            self.send_error(503 if busy else 404)
            return
        content = path.read_bytes()
        start, end = 0, len(content)
        if server.ranges and (wanted := self.headers.get("Range")):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last or end) + 1, end)
        content = content[:end]
        self.send_response(206 if server.ranges and "Range" in self.headers else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if with_content:
            left = content[start:]
            written = left[: len(left) // 2] if drop else left[: server.at_most]
            server.resumed += start > 0 and written == left
            self.wfile.write(written)

    def log_message(self, *words: object) -> None:
        """Write no log."""


@contextmanager
def serving(folder: Path, drop_every: int = 0, ranges: bool = True) -> Iterator[Server]:
    """Serve a folder over http within a context."""
    server = Server(folder, drop_every, ranges)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
