"""`~` at the beginning of a path: the home folder.

A shell expands it in `--run.dir ~/x` and neither in `--run.dir=~/x` nor within quotes, and no shell reads YAML. Taken
as a name it makes a folder `~`, and whoever then types `rm -r ~` loses everything.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from mbsd.errors import UserError


def expand_home(text: str) -> str:
    """A path with the home folder in place of a leading `~` or `~user`; anything else as it is.

    Raises:
        UserError: no such user.
    """
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)
    if expanded.startswith("~") and "/" in text:
        raise UserError(f"{text}: there is no user {text.split('/')[0][1:]}; write ./{text} for a folder of that name")
    return expanded


def expand_words(words: Sequence[str]) -> list[str]:
    """The words of a command line, each with its `~` expanded, behind `--option=` too."""
    read = []
    for word in words:
        option, equals, value = word.partition("=")
        joined = option.startswith("--") and equals
        read.append(f"{option}={expand_home(value)}" if joined else expand_home(word))
    return read
