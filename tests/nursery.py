"""Command lines that start at once and may be killed: children of a process that has imported everything already.

`Nursery` is what tests use. Run as a program, this file forks a child for every line of JSON on its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

ALONE: dict[str, str] = {}


class Nursery:
    """Starts, kills and awaits command lines of `ldm`, each of one process or of several that find each other."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(self, words: list[object], said: Path, processes: int = 1) -> list[int]:
        """Process ids of `ldm WORDS`; what it prints is appended to the file `said`."""
        groups = [ALONE] if processes == 1 else _group(processes)
        return [self._ask({"words": list(map(str, words)), "said": str(said), "environment": g}) for g in groups]

    def wait(self, pids: list[int]) -> list[int]:
        """Exit statuses, negative for a signal; when one process has failed, the others are ended, as torchrun does."""
        found = []
        for pid in pids:
            found.append(self._ask({"wait": pid}))
            if found[-1]:
                self.kill(pids[len(found) :])
        return found

    def run(self, words: list[object], said: Path, processes: int = 1) -> list[int]:
        """Start and wait."""
        return self.wait(self.start(words, said, processes))

    @staticmethod
    def kill(pids: list[int]) -> None:
        """SIGKILL to all of them."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the process that forks."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, question: dict[str, object]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def _group(processes: int) -> list[dict[str, str]]:
    """What torchrun tells its processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "ACCELERATE_USE_CPU": "true"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _fork(order: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(order["environment"])
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv = ["ldm", *order["words"]]
    status = 1
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    import ldm.build
    import ldm.data.scenes
    import ldm.data.sources
    import ldm.training.loop  # noqa: F401 (what a child would import)
    from ldm.cli.main import main

    for line in sys.stdin:
        asked = json.loads(line)
        answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]) if "wait" in asked else _fork(asked)
        print(answer, flush=True)
