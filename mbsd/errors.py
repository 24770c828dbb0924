"""The two ways a command fails: a user's mistake (one clear line, exit 2) and anything else (a traceback, exit 1)."""

from __future__ import annotations

import functools
import os
import platform
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXIT_USER_ERROR = 2


class UserError(Exception):
    """A mistake only the user can mend.

    The message is one line that names the file, key or row, what was found, what was expected and what to do.

    Attributes:
        shared: every rank raises the same error at the same place, so that rank 0 alone prints it.
    """

    def __init__(self, message: str, *, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared


def exits_cleanly(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command's entry point: a `UserError` becomes one line on stderr and exit code 2.

    Whatever concerns one rank of several begins with its number and host, a traceback too.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except UserError as error:
            if error.shared and _rank() == 0 or _who() is None:
                print(f"error: {error}", file=sys.stderr, flush=True)
            elif not error.shared:
                print(f"{_who()}: error: {error}", file=sys.stderr, flush=True)
            sys.exit(EXIT_USER_ERROR)
        except Exception as error:
            if (who := _who()) is not None:
                print(f"{who}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            raise

    return wrapped


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _who() -> str | None:
    """`rank 3 on node17`; None where this process is the only one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return None
    return f"rank {_rank()} on {platform.node()}"
