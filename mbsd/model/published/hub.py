"""Files that a checkpoint may have or lack, in a folder or on the hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers.utils.hub import cached_file


def optional_json(name_or_path: str, file: str) -> dict[str, Any] | None:
    """What a JSON file of a folder or hub name holds; None where it has none.

    Raises:
        OSError: the hub does not answer, and nothing is known from before: the file may be there.
        ValueError: it is no JSON.
    """
    try:
        path = cached_file(name_or_path, file)
    except OSError as error:
        # transformers raises the same for a file that is missing and for a hub that does not answer: only the second
        # has a cause. The cache knows which files were missing when the hub was last asked.
        known = None if Path(name_or_path).is_dir() else try_to_load_from_cache(name_or_path, file)
        if error.__cause__ is not None and (known is None or isinstance(known, str)):
            raise
        return None
    assert path is not None, "transformers gives none for a config.json alone"
    found: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    return found
