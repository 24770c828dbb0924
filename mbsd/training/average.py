"""A moving average of the weights, which is validated and saved as the run's weights while the raw ones are trained."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mbsd.checkpoint.flat_layout import Flat, read_layout, write_back
from mbsd.checkpoint.shards import AVERAGE

UPDATES = "average_updates"


class WeightAverage:
    """The exponential moving average of what the optimizer updates: after each step, average <- d average + (1 - d) w
    with d = min(decay, (1 + n) / (10 + n)) after n updates before, and after the first step average = w.

    w are the float32 weights: the masters of fp16 and bf16, of which ZeRO-1 and -2 give each rank a slice. The average
    lies in the optimizer's state beside the moments of the same slice, so that whatever saves, cuts and restores those
    does it too.

    Args:
        engine: as it was built.
        decay: 0: no average is kept, and nothing is done.
    """

    def __init__(self, engine: Any, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self._layout = read_layout(engine) if decay else None
        self._skipped = 0

    def restored(self) -> None:
        """The engine has a checkpoint's state: an average that is not asked for any more is dropped."""
        self._skipped = int(self._engine.skipped_steps)
        if not self._decay:
            for state in self._engine.optimizer.state.values():
                state.pop(AVERAGE, None)
                state.pop(UPDATES, None)

    def update(self) -> None:
        """Take in the weights after a step, unless fp16 skipped it; nothing waits for the device."""
        skipped, self._skipped = int(self._engine.skipped_steps) > self._skipped, int(self._engine.skipped_steps)
        if skipped or not self._decay:
            return
        by_updates: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for flat, state in self._states():
            weights = flat.master.detach()
            if AVERAGE not in state:
                state[AVERAGE], state[UPDATES] = weights.clone(), 1
                continue
            by_updates[state[UPDATES]].append((state[AVERAGE], weights))
            state[UPDATES] += 1
        for n, pairs in by_updates.items():
            averages, weights_of = map(list, zip(*pairs, strict=True))
            get_ema_multi_avg_fn(min(self._decay, (1 + n) / (10 + n)))(averages, weights_of, n)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averages for its weights inside, and its own again behind (collective).

        Gradients and the optimizer are not to be touched inside.
        """
        if not self._decay:
            yield
            return
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        """Weights and averages change places, without a copy of either; the model's weights follow."""
        for flat, state in self._states():
            if AVERAGE in state:
                flat.master.data, state[AVERAGE] = state[AVERAGE], flat.master.data
        assert self._layout is not None
        write_back(self._engine, self._layout)

    def _states(self) -> Iterator[tuple[Flat, dict[str, Any]]]:
        """What the optimizer has updated so far, with its state; a parameter without gradient has none, its average is
        itself."""
        for flat in self._layout.flats if self._layout is not None else ():
            state = self._engine.optimizer.state.get(flat.master)
            if state:
                yield flat, state
