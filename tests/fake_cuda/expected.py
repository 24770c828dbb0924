"""What a step is allowed to ask of the device, and which kernels it has to launch."""

from __future__ import annotations

import re
from collections import Counter

from tests.fake_cuda.steps import ds_config

GROUPS = 2  # of parameters, with and without decay: DeepSpeed clips each by itself
ZERO, UTILS = "deepspeed/runtime/zero/stage_1_and_2.py", "deepspeed/runtime/utils.py"
PAGEABLE = Counter({f"cudaMemcpyAsync < {UTILS}:mask_nan_or_inf_with_val_inplace": GROUPS})  # the number -1
# Part of the attention kernels' names: memory-efficient attention made for the V100, flash attention from sm_80.
FORWARD = {"fp16": "fmha_cutlassF_f16_aligned_64x64_rf_sm70", "bf16": "13pytorch_flash16flash_fwd_kernel"}
BACKWARD = {"fp16": "fmha_cutlassB_f16_aligned_64x64_k32_dropout_sm70",
            "bf16": "13pytorch_flash44flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel"}  # fmt: skip
FLOAT32 = {"fp16": "fmha_cutlassF_f32_aligned_64x64_rf_sm70", "bf16": "fmha_cutlassF_f32_aligned_64x64_rf_sm80"}
# torch's softmax, where it is not the logarithm of one as in a loss: attention written out in products has one a layer.
SOFTMAX = re.compile(r"softmax_warp_(forward|backward)I\w+?Li\d+ELb0E|cunn_SoftMax(?!.*LogSoftMax)")


def waits_in_backward(precision: str, kind: str) -> Counter[str]:
    """DeepSpeed's one: where it overlaps communication, the device is waited for before its gradients are read."""
    overlaps = ds_config(precision, kind).tree["zero_optimization"]["overlap_comm"]
    return Counter({f"cudaDeviceSynchronize < {ZERO}:independent_gradient_partition_epilogue": 1} if overlaps else {})


def waits_in_step(precision: str) -> Counter[str]:
    """Those of DeepSpeed that its JSON cannot switch off: in clipping, and in fp16 whether it steps at all."""
    checks = precision == "fp16"
    return Counter(
        {
            f"cudaStreamSynchronize < {UTILS}:mask_nan_or_inf_with_val_inplace": 2 * GROUPS,
            f"cudaStreamSynchronize < {UTILS}:is_invalid_grad_norm": GROUPS + checks,
        }
    ) + Counter({f"cudaStreamSynchronize < {ZERO}:has_overflow": int(checks)})
