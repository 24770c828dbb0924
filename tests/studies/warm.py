"""What starts a study's commands in these tests: ranks forked from a process that has imported everything.

A command is a process of its own all the same (`client.py`), and its rank ends when it is killed.
"""

from __future__ import annotations

import json
import select
import shlex
import socket
import sys
import threading
import time
from pathlib import Path

from tests.ranks import ROOT, Ranks


class Server:
    """Attributes: started: (launcher, name of its settings) of every command, in order; live: the ranks at work."""

    def __init__(self, folder: Path, ranks: int = 1) -> None:
        self.folder, self.started, self.ranks = folder, list[tuple[str, str]](), ranks
        self.live: Ranks | None = None
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(folder / "socket"))
        self._socket.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def command(self) -> str:
        """For `launch.command`."""
        return shlex.join([sys.executable, "-S", str(ROOT / "tests/studies/client.py"), str(self.folder / "socket")])

    def _serve(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        request = b""
        while not request.endswith(b"\n"):
            request += connection.recv(1 << 16)
        if select.select([connection], [], [], 0)[0]:
            return  # killed while it waited for its turn: nothing is started for it
        launcher, *words = json.loads(request)["words"]
        config = words[words.index("--config") + 1] if "--config" in words else ""
        settings = config.partition("/settings/")[2]
        self.started.append((Path(launcher).stem, settings.removesuffix(".yaml")))
        self.live = start = Ranks(self.ranks, words, self.folder / str(len(self.started)), launcher=Path(launcher).stem)
        while any(process.is_alive() for process in start.processes):
            if select.select([connection], [], [], 0)[0]:  # it says nothing more: it is gone
                start.kill()
                return
            time.sleep(0.01)
        codes = [process.exitcode for process in start.processes]
        worst = max(1 if code is None or code < 0 else code for code in codes)
        answer = {"code": worst, "said": start.printed()}
        connection.sendall(json.dumps(answer).encode())
