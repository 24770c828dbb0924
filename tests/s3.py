"""A real S3 server on this machine: moto's, in a process of its own that can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import fsspec

from tests.ranks import free_port


class S3:
    """A running server, for the time of a `with`, with the bucket "bucket".

    Attributes: env, what a process needs to reach it; files, an fsspec client of it.
    """

    def __init__(self, log: Path) -> None:
        port = free_port()
        self.endpoint = f"http://127.0.0.1:{port}"
        self.env = {
            "AWS_ENDPOINT_URL": self.endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
        }  # fmt: skip
        with log.open("w") as file:
            command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
            self.process = subprocess.Popen(command, env={**os.environ, **self.env}, stdout=file, stderr=file)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        self.files: Any = fsspec.filesystem(
            "s3", key="key", secret="secret", endpoint_url=self.endpoint, use_listings_cache=False,
            skip_instance_cache=True,
        )  # fmt: skip

    def __enter__(self) -> S3:
        self.files.mkdir("bucket")
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def refuse_everybody(self) -> None:
        """From now on nobody has the right to do anything."""
        self._allow(b"0")

    def allow_everybody(self) -> None:
        self._allow(b"inf")

    def _allow(self, calls: bytes) -> None:
        """So many more calls without a right to them."""
        words = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", data=calls, headers=words)
        urllib.request.urlopen(request).close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.endpoint}/moto-api/", timeout=1).close()
        except (urllib.error.URLError, OSError):
            return False
        return True
