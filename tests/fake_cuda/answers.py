"""What a device that computes nothing cannot know, answered as in a healthy run: by hooks on modules, when they load.

Whatever asked the device is still called, so that it is seen to ask; its answer alone is put right.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def of_torch(torch: Any) -> None:
    """There is no cuDNN; two tensors of the device are equal."""
    torch.backends.cudnn.enabled = False
    equal = torch.equal

    def equal_on_device(one: Any, other: Any) -> bool:
        return equal(one, other) or one.is_cuda

    torch.equal = equal_on_device


def of_distributed(distributed: Any) -> None:
    """Objects are exchanged on the host between several ranks: on the device torch would compare their sizes."""
    host: list[Any] = []

    def on_host(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def exchanged(*arguments: Any, group: Any = None, **named: Any) -> Any:
            if group is None and distributed.get_world_size() > 1:
                if not host:  # collective, as what asks for it
                    host.append(distributed.new_group(backend="gloo"))
                group = host[0]
            return function(*arguments, group=group, **named)

        return exchanged

    for name in ("all_gather_object", "broadcast_object_list"):
        setattr(distributed, name, on_host(getattr(distributed, name)))


def of_deepspeed_utils(utils: Any) -> None:
    """The norm of the gradients is a number."""
    utils.is_invalid_grad_norm = _but(False, utils.is_invalid_grad_norm)


def of_deepspeed_zero(zero: Any) -> None:
    """No gradient overflows."""
    zero.DeepSpeedZeroOptimizer.has_overflow = _but(False, zero.DeepSpeedZeroOptimizer.has_overflow)


def of_divergence(divergence: Any) -> None:
    """Losses and weights are numbers."""
    for name in ("refuse_divergence", "refuse_broken_weights"):
        setattr(divergence, name, _despite(divergence.DivergedError, getattr(divergence, name)))


def of_scores(table_scores: Any) -> None:
    """Labels are 0 and 1 in turn, logits are drawn, and sums over samples are their number."""
    import numpy as np

    add = table_scores.Scores.add

    def added(scores: Any, batch: Any, logits: Any) -> None:
        add(scores, batch, logits)
        scores.labels[-1] = np.arange(len(scores.labels[-1])) % 2
        scores.logits[-1] = np.random.default_rng(0).normal(size=scores.logits[-1].shape)

    gather = table_scores.gather_scores

    def gathered(mine: Any, totals: Any, positions: Any = None) -> Any:
        count = sum(len(labels) for labels in mine.labels)
        return gather(mine, dict.fromkeys(totals, float(count)), positions)

    table_scores.Scores.add, table_scores.gather_scores = added, gathered


def of_trainer(trainer: Any) -> None:
    """What is drawn of held-out samples can be drawn."""
    trainer.Trainer.show = _despite((RuntimeError, ValueError, OverflowError), trainer.Trainer.show)


def _but(answer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answered(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        return answer

    return answered


def _despite(errors: Any, function: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(function)
    def tried(*arguments: Any, **named: Any) -> None:
        try:
            function(*arguments, **named)
        except errors as error:
            print(f"fake CUDA device: {function.__name__} found no numbers ({type(error).__name__})", flush=True)

    return tried


ANSWERS = {
    "torch": of_torch,
    "torch.distributed": of_distributed,
    "deepspeed.runtime.utils": of_deepspeed_utils,
    "deepspeed.runtime.zero.stage_1_and_2": of_deepspeed_zero,
    "mbsd.training.divergence": of_divergence,
    "mbsd.metrics.table_scores": of_scores,
    "mbsd.training.trainer": of_trainer,
}
