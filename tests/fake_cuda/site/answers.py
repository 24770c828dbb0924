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


def of_deepspeed_utils(utils: Any) -> None:
    """The norm of the gradients is a number."""
    utils.is_invalid_grad_norm = _but(False, utils.is_invalid_grad_norm)


def of_deepspeed_zero(zero: Any) -> None:
    """No gradient overflows."""
    zero.DeepSpeedZeroOptimizer.has_overflow = _but(False, zero.DeepSpeedZeroOptimizer.has_overflow)


def _but(answer: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def answered(*arguments: Any, **named: Any) -> Any:
        function(*arguments, **named)
        return answer

    return answered


ANSWERS = {
    "torch": of_torch,
    "deepspeed.runtime.utils": of_deepspeed_utils,
    "deepspeed.runtime.zero.stage_1_and_2": of_deepspeed_zero,
}
