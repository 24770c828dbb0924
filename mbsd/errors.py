"""The ways a command fails: a user's mistake (one clear line, exit 2), something outside that ended it (one line, exit
1), and anything else (a traceback, exit 1)."""

from __future__ import annotations

import functools
import io
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

EXIT_FAILURE, EXIT_USER_ERROR = 1, 2
# Environment variable: path of the file to which a rank writes the UserError that it exits with. srun's exit code is
# not enough: it is that of the ranks which srun ended when the first one was gone.
MISTAKE_FILE = "MBSD_MISTAKE_FILE"
GRACE = 1.0  # seconds
RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


class UserError(Exception):
    """A mistake only the user can mend.

    The message is one line that names the file, key or row, what was found, what was expected and what to do.

    Attributes:
        shared: every rank raises the same error at the same place, so that rank 0 alone prints it.
    """

    def __init__(self, message: str, *, shared: bool = False) -> None:
        super().__init__(message)
        self.shared = shared


class RunFailed(Exception):  # noqa: N818  (what happened, not what is wrong with the program)
    """Something outside the program ended it, such as a killed process: started again it may well succeed.

    The message is one line that names what happened and what to do.
    """


def exits_cleanly(command: Callable[P, R]) -> Callable[P, R]:
    """Wrap a command's entry point: a `UserError` becomes one line on stderr and exit code 2, a `RunFailed` one and 1.

    Whatever concerns one rank of several begins with its number and host, a traceback too. What the screen's encoding
    has no letters for is printed as `\\u7ea2`.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        _print_any_letter()
        try:
            return command(*args, **kwargs)
        except UserError as error:
            if error.shared and this_rank() == 0 or _who() is None:
                print(f"error: {error}", file=sys.stderr, flush=True)
            elif not error.shared:
                print(f"{_who()}: error: {error}", file=sys.stderr, flush=True)
            else:
                time.sleep(GRACE)  # launchers end all ranks when one has ended: rank 0 has to have printed it by then
            if MISTAKE_FILE in os.environ:
                Path(os.environ[MISTAKE_FILE]).write_text(f"{error}\n", encoding="utf-8", errors="backslashreplace")
            sys.exit(EXIT_USER_ERROR)
        except UnicodeEncodeError as error:
            if error.encoding.lower().replace("-", "") == "utf8":
                raise
            print(f"error: {_not_in(error)}", file=sys.stderr, flush=True)
            sys.exit(EXIT_USER_ERROR)
        except Exception as error:
            if (failure := _failure_in(error)) is not None:
                print(f"{_who() or 'error'}: {failure}", file=sys.stderr, flush=True)
                sys.exit(EXIT_FAILURE)
            if (who := _who()) is not None:
                print(f"{who}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            raise

    return wrapped


def _failure_in(error: BaseException) -> RunFailed | None:
    """The RunFailed that an error is or was made of: a signal's handler raises it in the middle of any library's code,
    which may wrap it.
    """
    found: BaseException | None = error
    while found is not None and not isinstance(found, RunFailed):
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return found


def _not_in(error: UnicodeEncodeError) -> str:
    """A path or text that the process's locale has no bytes for, in one line (ASCII)."""
    found = ascii(error.object[error.start : error.end])
    return (
        f"{found} in {ascii(error.object)[:200]} cannot be written in this process's encoding {error.encoding}; set "
        "PYTHONUTF8=1, or LC_ALL to a UTF-8 locale such as C.UTF-8"
    )


def _print_any_letter() -> None:
    """Let no title, path or name end a command because the screen's encoding does not hold it.

    That of a cron job or a container is often ASCII; and a file's name may be no text at all.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def this_rank() -> int:
    """This process's rank from the launcher's environment, before the ranks have met; 0 where none is set."""
    return _told(RANKS, 0)


def _who() -> str | None:
    """`rank 3 on node17`; None where this process is the only one."""
    return f"rank {this_rank()} on {platform.node()}" if _told(WORLD_SIZES, 1) > 1 else None


def _told(names: tuple[str, ...], otherwise: int) -> int:
    return int(next((os.environ[name] for name in names if name in os.environ), otherwise))
