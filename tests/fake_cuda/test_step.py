"""A training step as on a V100 (fp16) and an H100 (bf16): where the host waits, what is copied, which kernels run."""

from __future__ import annotations

import pytest

from tests.fake_cuda.expected import BACKWARD, FORWARD, PAGEABLE, SOFTMAX, waits_in_backward, waits_in_step
from tests.fake_cuda.recorder import Part
from tests.fake_cuda.steps import KINDS, LAYERS

Steps = dict[str, dict[str, Part]]
PRECISIONS = pytest.mark.parametrize("precision", ["fp16", "bf16"])
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@PRECISIONS
@EVERY_KIND
def test_forward_never_waits(steps: Steps, kind: str, precision: str) -> None:
    for name in ("contexts", "forward", "evaluation"):
        part = steps[precision][f"{kind} {name}"]
        assert part.asked("wait", "pageable", "allocation") == {}, name
        assert name == "contexts" or sum(part.kernels().values()) > 50, "it ran"


@PRECISIONS
@EVERY_KIND
def test_backward_waits_where_deepspeed_overlaps(steps: Steps, kind: str, precision: str) -> None:
    part = steps[precision][f"{kind} backward"]
    assert part.asked("wait") == waits_in_backward(precision, kind)
    assert part.asked("pageable", "allocation") == {}


@PRECISIONS
@EVERY_KIND
def test_step_waits_where_deepspeed_clips(steps: Steps, kind: str, precision: str) -> None:
    part = steps[precision][f"{kind} step"]
    assert part.asked("wait") == waits_in_step(precision)
    assert part.asked("pageable") == PAGEABLE
    assert part.of("allocation") == []


@PRECISIONS
@EVERY_KIND
def test_attention_is_one_kernel_a_layer(steps: Steps, kind: str, precision: str) -> None:
    for name, expected in (("forward", FORWARD), ("evaluation", FORWARD), ("backward", BACKWARD)):
        kernels = steps[precision][f"{kind} {name}"].kernels()
        forwards = 2 if (kind, name) == ("hard", "forward") else 1  # negatives are looked for first
        assert sum(n for kernel, n in kernels.items() if expected[precision] in kernel) == forwards * LAYERS, name
        assert [kernel for kernel in kernels if SOFTMAX.search(kernel)] == []


@PRECISIONS
def test_the_first_of_two_passes_encodes_each_micro_batch(steps: Steps, precision: str) -> None:
    """And gathers, once: the second pass is a forward alone. Its earlier micro-step asks nothing of the device."""
    parts = steps[precision]
    kernels = {name: parts[f"two_pass {name}"].kernels() for name in ("contexts", "forward")}
    attention = {
        name: sum(n for kernel, n in found.items() if FORWARD[precision] in kernel) for name, found in kernels.items()
    }
    assert attention == {"contexts": 2 * LAYERS, "forward": LAYERS}
    for kind, gathering in (("two_pass", "contexts"), ("contrastive", "forward")):
        gathers = {part: parts[f"{kind} {part}"].of("nccl") for part in ("contexts", "forward", "backward")}
        assert [name for name, events in gathers.items() if any("gather" in e.name.lower() for e in events)] == [
            gathering
        ]
    earlier = [parts[f"two_pass, earlier {name}"] for name in ("forward", "backward", "step")]
    assert all(part.asked("wait", "pageable", "allocation") == {} for part in earlier)


@EVERY_KIND
def test_the_search_for_overflow_launches_no_kernels_for_each_tensor(steps: Steps, kind: str) -> None:
    """A step in fp16 has it, one in bf16 has not; there are more than 30 tensors."""
    fp16, bf16 = (sum(steps[precision][f"{kind} step"].kernels().values()) for precision in ("fp16", "bf16"))
    assert bf16 < fp16 < bf16 + 30


@PRECISIONS
def test_only_its_own_device(steps: Steps, precision: str) -> None:
    events = [event for part in steps[precision].values() for event in part.events]
    assert [event.device for event in events if event.kind == "context"] == [0]
    assert [str(event) for event in events if event.kind in ("refused", "peer", "unsupported")] == []
    assert {event.values["host"] for event in events if event.kind == "nccl" and event.name != "init"} == {"0"}
