"""A web server on this machine that gives out a folder, slowly, spoiled or not at all where a test wants it."""

from __future__ import annotations

import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Store:
    """Files of a folder over HTTP. Attributes: asked, the name of each request; damage, name -> answers to spoil."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.damage, self.delay = folder, list[str](), dict[str, int](), 0.0
        self.refuses = False
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_HEAD(self) -> None:  # noqa: N802
                self._answer(body=False)

            def do_GET(self) -> None:  # noqa: N802
                self._answer(body=True)

            def _answer(self, *, body: bool) -> None:
                time.sleep(store.delay)
                name = self.path.lstrip("/")
                path = store.folder / name
                data = path.read_bytes() if path.is_file() else None
                if store.refuses:
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if body:
                    store.asked.append(name)
                    if data is not None and store.damage.get(name, 0) > 0:
                        store.damage[name] -= 1
                        data = data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
                self.send_response(200 if data is not None else 404)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                if body and data:
                    self.wfile.write(data)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def shards(self) -> list[str]:
        return [name for name in self.asked if name.endswith(".tar")]


def main() -> None:
    """`python -m tests.web FOLDER SECONDS`: give the folder out, each answer after so many seconds; prints the URL."""
    store = Store(Path(sys.argv[1]))
    store.delay = float(sys.argv[2])
    print(store.url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
