"""Running a typer application so that a misuse is one line and exit code 2, like every other mistake of the user's."""

from __future__ import annotations

import sys

import typer

from mbsd.errors import UserError
from mbsd.io.home import expand_words

# typer carries a copy of click and exports of its errors only BadParameter; what that derives from is every misuse.
USAGE_ERROR: type[BaseException] = typer.BadParameter.__bases__[0]


def run_app(app: typer.Typer, see: str) -> None:
    """Run `app` on this process's command line; `see` is the command that explains it.

    Raises:
        UserError: the command line is wrong; it names the option or command, and what was expected.
    """
    try:
        app(args=expand_words(sys.argv[1:]), standalone_mode=False)
    except USAGE_ERROR as error:
        message = str(getattr(error, "format_message", error.__str__)())
        raise UserError(f"{message.rstrip('.')} (see `{see}`)") from error
    except typer.Abort:
        sys.exit(130)
