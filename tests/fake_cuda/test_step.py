"""A training step as on a V100 (fp16) and an H100 (bf16): where the host waits, what is copied, which kernels run."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.fake_cuda.recorder import Part
from tests.fake_cuda.steps import KINDS, LAYERS

GROUPS = 2  # of parameters, with and without decay: DeepSpeed clips each by itself
ZERO, UTILS = "deepspeed/runtime/zero/stage_1_and_2.py", "deepspeed/runtime/utils.py"
# Every wait of the host in a step that is left, all of them DeepSpeed's, and none that its JSON could switch off.
IN_BACKWARD = Counter({f"cudaDeviceSynchronize < {ZERO}:independent_gradient_partition_epilogue": 1})
IN_STEP = Counter(
    {
        f"cudaStreamSynchronize < {UTILS}:mask_nan_or_inf_with_val_inplace": 2 * GROUPS,
        f"cudaStreamSynchronize < {UTILS}:is_invalid_grad_norm": 1 + GROUPS,
    }
)
OVERFLOW = Counter({f"cudaStreamSynchronize < {ZERO}:has_overflow": 1})  # fp16 has to know whether it steps
PAGEABLE = Counter({f"cudaMemcpyAsync < {UTILS}:mask_nan_or_inf_with_val_inplace": GROUPS})  # the number -1

Steps = dict[str, dict[str, Part]]
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "bf16"])
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)
# Part of the attention kernels' names: memory-efficient attention made for the V100, flash attention from sm_80.
FORWARD = {"fp16": "fmha_cutlassF_f16_aligned_64x64_rf_sm70", "bf16": "13pytorch_flash16flash_fwd_kernel"}
BACKWARD = {"fp16": "fmha_cutlassB_f16_aligned_64x64_k32_dropout_sm70",
            "bf16": "13pytorch_flash44flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel"}  # fmt: skip
# torch's softmax, where it is not the logarithm of one as in a loss: attention written out in products has one a layer.
SOFTMAX = re.compile(r"softmax_warp_(forward|backward)I\w+?Li\d+ELb0E|cunn_SoftMax(?!.*LogSoftMax)")


@PRECISIONS
@EVERY_KIND
def test_forward_never_waits(steps: Steps, kind: str, precision: str) -> None:
    for name in ("contexts", "forward", "evaluation"):
        part = steps[precision][f"{kind} {name}"]
        assert part.asked("wait", "pageable", "allocation") == {}, name
        assert name == "contexts" or sum(part.kernels().values()) > 50, "it ran"


@PRECISIONS
@EVERY_KIND
def test_backward_waits_once_in_deepspeed(steps: Steps, kind: str, precision: str) -> None:
    part = steps[precision][f"{kind} backward"]
    assert part.asked("wait") == IN_BACKWARD
    assert part.asked("pageable", "allocation") == {}


@PRECISIONS
@EVERY_KIND
def test_step_waits_where_deepspeed_clips(steps: Steps, kind: str, precision: str) -> None:
    part = steps[precision][f"{kind} step"]
    assert part.asked("wait") == IN_STEP + (OVERFLOW if precision == "fp16" else Counter())
    assert part.asked("pageable") == PAGEABLE
    assert part.of("allocation") == []


@PRECISIONS
@EVERY_KIND
def test_attention_is_one_kernel_a_layer(steps: Steps, kind: str, precision: str) -> None:
    for name, expected in (("forward", FORWARD), ("evaluation", FORWARD), ("backward", BACKWARD)):
        kernels = steps[precision][f"{kind} {name}"].kernels()
        assert sum(n for kernel, n in kernels.items() if expected[precision] in kernel) == LAYERS, name
        assert [kernel for kernel in kernels if SOFTMAX.search(kernel)] == []


@PRECISIONS
def test_only_its_own_device(steps: Steps, precision: str) -> None:
    events = [event for part in steps[precision].values() for event in part.events]
    assert [event.device for event in events if event.kind == "context"] == [0]
    assert [str(event) for event in events if event.kind in ("refused", "peer", "unsupported")] == []
    assert {event.values["host"] for event in events if event.kind == "nccl" and event.name != "init"} == {"0"}
