"""The key-value store through which the threads of all ranks agree (torch's TCPStore)."""

from __future__ import annotations

import json
import time
from typing import Any, Protocol

PAUSE = 0.02  # seconds between two looks


class Mailbox(Protocol):
    """What is used of torch.distributed.Store."""

    def set(self, key: str, value: str, /) -> None:
        """Put."""

    def get(self, key: str, /) -> bytes:
        """Take a look."""

    def check(self, keys: list[str], /) -> bool:
        """Whether all are there."""

    def delete_key(self, key: str, /) -> bool:
        """Forget."""


def wait_for(mailbox: Mailbox, key: str, pause: float = PAUSE) -> Any:
    """The JSON value of `key`, when it is there; looked for every `pause` seconds."""
    while not mailbox.check([key]):
        time.sleep(pause)
    return json.loads(mailbox.get(key))
