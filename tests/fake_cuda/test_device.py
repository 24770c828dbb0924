"""The fake device tells of everything that the other tests forbid, and who asked; what it lacks says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_cuda import build
from tests.fake_cuda.expected import SOFTMAX
from tests.fake_cuda.recorder import Event, Frame, Part, events, parts

Asked = dict[str, Part]
HERE = "tests/fake_cuda/asks.py:main"


@pytest.mark.parametrize(
    ("part", "kinds", "told"),
    [
        ("item", ["wait", "pageable"], {f"cudaStreamSynchronize < {HERE}": 1}),
        ("pageable", ["wait", "pageable"], {f"cudaStreamSynchronize < {HERE}": 1, f"cudaMemcpyAsync < {HERE}": 1}),
        ("pinned", ["wait", "pageable"], {}),
        ("synchronize", ["wait"], {"cudaDeviceSynchronize < torch/cuda/__init__.py:synchronize": 1}),
        ("other device", ["context"], {f"cudaSetDevice < {HERE}": 1}),
        ("no such device", ["refused"], {"cudaSetDevice < torch/cuda/__init__.py:set_device": 1}),
    ],
)
def test_tells_what_was_asked_and_by_whom(asked: Asked, part: str, kinds: list[str], told: dict[str, int]) -> None:
    assert asked[part].asked(*kinds) == told


def test_other_device_is_named(asked: Asked) -> None:
    assert [event.device for event in asked["other device"].of("context")] == [1]
    assert [event.device for event in asked["start"].of("context")] == [0]


def test_math_attention_is_seen_by_its_softmax(asked: Asked) -> None:
    assert [kernel for kernel in asked["math attention"].kernels() if SOFTMAX.search(kernel)]
    assert not [kernel for kernel in asked["start"].kernels() if SOFTMAX.search(kernel)]


def test_memory_is_what_the_allocator_reserves(asked: Asked) -> None:
    """And more than an H100 has is refused."""
    (name,) = [name for name in asked if name.startswith("reserved")]
    assert asked[name].memory()[0] == int(name.split()[1]) >= 20 << 20
    assert "out of memory" in asked


def test_host_memory_in_nccl_is_told(asked: Asked) -> None:
    (event,) = [event for event in asked["host memory"].of("nccl") if event.name != "init"]
    assert (event.name, event.values["host"]) == ("all_reduce", "1")
    assert str(event.asked_by()) == "tests/fake_cuda/asks.py:reduce_host_memory"


def test_what_it_lacks_says_so(asked: Asked) -> None:
    assert [event.name for event in asked["profiler"].of("unsupported")] == ["cudaProfilerStart"]


def test_why_it_cannot_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build, "torch_cuda", lambda: None)
    assert build.why_not() == "torch is a build for CPUs"
    monkeypatch.setattr(build, "torch_cuda", lambda: "99.1")
    found = build.why_not()
    assert found is not None and "cuda_runtime_api.h" in found and found.endswith("of CUDA 99.1")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.why_not() == "a fake CUDA device needs a C compiler: cc is not there"
    with pytest.raises(RuntimeError, match="cc is not there"):
        build.build(tmp_path / "device")


def test_stubs_compute_nothing_or_say_what_they_are() -> None:
    code = build.stubs({"cublasSgemm_v2", "ncclSend", "cudaGraphLaunch"}).splitlines()
    assert code[1:] == [
        "int cublasSgemm_v2() { return 0; }",
        'int cudaGraphLaunch() { return unsupported("cudaGraphLaunch", 801); }',
        'int ncclSend() { return unsupported("ncclSend", 5); }',
    ]


def test_record_is_read() -> None:
    lines = [
        "@wait\tthread=3\tname=cudaStreamSynchronize\tdevice=1",
        "Stack (most recent call first):",
        '  File "/v/lib/site-packages/torch/cuda/__init__.py", line 1 in synchronize',
        '  File "/v/lib/site-packages/deepspeed/accelerator/cuda_accelerator.py", line 2 in synchronize',
        '  File "/home/me/mbsd/mbsd/data/loader.py", line 3 in finish',
        "@kernel\tthread=3\tlaunches=2\tname=k",
        "@mark\tthread=3\ttext=one",
        "@memory\tthread=3\tdevice=1\tbytes=8",
        "@mark\tthread=3\ttext=two",
    ]
    one, two = parts(events(lines))
    (wait,) = one.of("wait")
    assert isinstance(wait, Event) and wait.device == 1 and wait.asked_by() == Frame("mbsd/data/loader.py", 3, "finish")
    assert (one.name, one.kernels(), two.name, two.memory()) == ("one", {"k": 2}, "two", {1: 8})
