"""Fork `ldm` commands from a process that has imported everything, so that they start at once and can be killed.

`Nursery` is what tests use. Run as a program, this file forks a child for every line of JSON on its standard input.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ALONE: dict[str, str] = {}
SECONDS = 600  # time limit of a command


class Nursery:
    """Start, kill and await `ldm` commands of one process or of several in a process group."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def start(
        self,
        words: Sequence[object],
        said: Path,
        processes: int = 1,
        printed: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> list[int]:
        """Start `ldm WORDS` and return process ids; append standard error to `said`, standard output to `printed`.

        The processes use the given environment, by default the current one, and the current folder.
        """
        groups = [ALONE] if processes == 1 else _group(processes)
        asked = {"words": list(map(str, words)), "said": str(said), "printed": str(printed or said)}
        asked |= {"folder": str(Path.cwd())}
        own = dict(os.environ if environment is None else environment)
        return [self._ask({**asked, "environment": {**own, "OMP_NUM_THREADS": "1", **group}}) for group in groups]

    def wait(self, pids: list[int]) -> list[int]:
        """Return exit statuses, negative for signals; after a failure kill the other processes, as torchrun does."""
        found = []
        for pid in pids:
            found.append(self._ask({"wait": pid}))
            if found[-1]:
                self.kill(pids[len(found) :])
        return found

    def run(self, words: Sequence[object], said: Path, processes: int = 1) -> list[int]:
        """Start a command and return the exit statuses of its processes."""
        return self.wait(self.start(words, said, processes))

    def done(
        self, words: Sequence[object], processes: int = 1, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command and return its output and its first exit status that is not 0."""
        with tempfile.TemporaryDirectory() as folder:
            said, printed = (Path(folder) / name for name in ("said", "printed"))
            statuses = self.wait(self.start(words, said, processes, printed, environment))
            status = next(filter(None, statuses), 0)
            return subprocess.CompletedProcess(list(words), status, printed.read_text(), said.read_text())

    @staticmethod
    def kill(pids: list[int]) -> None:
        """Send SIGKILL to processes."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Terminate the forking process."""
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
    """Return the environment that torchrun sets for each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), "CUDA_VISIBLE_DEVICES": ""}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


def _fork(order: dict) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["folder"])
    for descriptor, name in ((1, "printed"), (2, "said")):
        os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
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
    from ldm.cli.main import main

    for line in sys.stdin:
        asked = json.loads(line)
        answer = os.waitstatus_to_exitcode(os.waitpid(asked["wait"], 0)[1]) if "wait" in asked else _fork(asked)
        print(answer, flush=True)
