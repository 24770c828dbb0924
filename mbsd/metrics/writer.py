"""Where a run's numbers go: metrics.jsonl, TensorBoard and the progress bar, from rank 0 alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from torch.utils.tensorboard import SummaryWriter
from tqdm.auto import tqdm

# Sections of TensorBoard's screen; what is not named here stands under "train".
SECTIONS = {"samples_per_s": "speed", "tokens_per_s": "speed", "mfu": "speed", "data_wait": "speed"}


class MetricsWriter:
    """Writes one object a logged step; a no-op on other ranks.

    Args:
        folder: the run folder.
        start_step, total_steps: of this start of the run. What an earlier start logged past `start_step` is taken back:
            those steps are done again.
        enabled: rank 0.
    """

    def __init__(self, folder: Path, *, start_step: int, total_steps: int, enabled: bool) -> None:
        self.enabled = enabled
        if not enabled:
            return
        self._path = folder / "metrics.jsonl"
        _drop_lines_after(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1)
        # A line a minute where nobody watches a terminal.
        interval = 0.5 if sys.stderr.isatty() else 60.0
        self._bar = tqdm(
            total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, mininterval=interval, delay=1.0
        )

    def advance(self) -> None:
        """One step is done."""
        if self.enabled:
            self._bar.update()

    def log(self, step: int, values: Mapping[str, float], prefix: str = "train") -> None:
        """Write `values` of `step`; validation values get the prefix `validation`."""
        if not self.enabled:
            return
        named = values if prefix == "train" else {f"{prefix}/{name}": value for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **named}) + "\n")
        self._file.flush()
        for name, value in values.items():
            section = prefix if prefix != "train" else SECTIONS.get(name, "train")
            self._board.add_scalar(f"{section}/{name}", value, step)
        if "loss" in values:
            self._bar.set_postfix(
                {f"{'' if prefix == 'train' else prefix + ' '}loss": f"{values['loss']:.4f}"}, refresh=False
            )

    def curves(self, step: int, section: str, values: Mapping[str, float]) -> None:
        """Write `values` of `step` to TensorBoard alone: what is too much for a line of metrics.jsonl."""
        if self.enabled:
            for name, value in values.items():
                self._board.add_scalar(f"{section}/{name}", value, step)

    def __enter__(self) -> MetricsWriter:
        """The writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files; what was logged stands whatever happened."""
        if self.enabled:
            self._bar.delay = 0  # or a bar that `say` has drawn before its time is left without an end of line
            self._bar.close()
            self._board.close()
            self._file.close()


def say(text: str) -> None:
    """A line above the progress bar, if there is one; any thread may call it."""
    tqdm.write(text, file=sys.stderr)


def _drop_lines_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
    beside = path.with_suffix(".writing")  # killed in between, the old lines still stand
    beside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    beside.replace(path)
