"""Keep writing after the reader of standard output or error exits, such as `head`, or `tee` at Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import sys
from typing import Any

from ldm.errors import UserError

READER_GONE = (errno.EPIPE, errno.EIO, errno.ECONNRESET)  # a closed pipe, terminal or connection


def guard_streams() -> None:
    """Let a command finish its work when nobody reads its output any more: discard the rest of the output.

    Other failures to write, such as a full disk, are errors on standard output and are ignored on standard error.
    Streams that a program has replaced remain.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # closed when the process was started
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (it is closed with the process)
        elif stream is getattr(sys, f"__{name}__"):
            stream.flush()
            setattr(sys, name, _guarded(stream, number))


def _guarded(stream: Any, number: int) -> io.TextIOWrapper:
    raw = _Output(number, "w", closefd=False)
    buffer: Any = raw if stream.write_through else io.BufferedWriter(raw)
    return io.TextIOWrapper(
        buffer, stream.encoding, stream.errors, None, stream.line_buffering, write_through=stream.write_through
    )


class _Output(io.FileIO):
    """A descriptor that discards what cannot be written."""

    def write(self, data: Any) -> int:
        """Write bytes.

        Raises:
            UserError: if standard output cannot be written, but may have a reader.
        """
        try:
            return super().write(data)
        except OSError as error:
            gone = error.errno in READER_GONE
            if gone or self.fileno() == 1:
                self._discard()
            if not gone and self.fileno() == 1:
                raise UserError(f"standard output cannot be written: {error.strerror}") from None
            return memoryview(data).nbytes

    def _discard(self) -> None:
        """Write to the null device from now on, also what is left in buffers."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
