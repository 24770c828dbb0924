"""`model.compile` as on a V100 and an H100: its kernels assemble, and from the second step on nothing waits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fake_cuda.compiled import STEPS
from tests.fake_cuda.conftest import CAPABILITY, KNOWN, run_plan
from tests.fake_cuda.forked import Process, Result
from tests.fake_cuda.recorder import Part

TARGET = {"fp16": "sm_70", "bf16": "sm_90a"}
ELF, CUDA = b"\x7fELF", 190  # a binary's first bytes, and its machine
FUSED = ("gelu", "gelu_backward", "native_dropout", "native_layer_norm", "native_layer_norm_backward")


@dataclass(frozen=True)
class Compiled:
    """A run's record by the names of its parts, and the folder in which its kernels lie as text and as machine code."""

    parts: dict[str, Part]
    kernels: Path

    def launched(self, part: str) -> set[str]:
        """Triton's kernels that ran in a part."""
        return {name for name in self.parts[part].kernels() if name.startswith("triton_")}


@pytest.fixture(scope="module")
def compiled(fake_cuda: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """Precision → steps of a compiled model on such a GPU."""
    folder = tmp_path_factory.mktemp("compiled")
    processes = {
        precision: Process(
            ["tests.fake_cuda.compiled", precision],
            str(folder / precision),
            {"FAKE_CUDA_CAPABILITY": sm, "TORCHINDUCTOR_CACHE_DIR": str(folder / f"{precision}_kernels")},
        )
        for precision, sm in CAPABILITY.items()
    }
    run_plan(fake_cuda, folder, [list(processes.values())])  # at once
    found = {}
    for precision, process in processes.items():
        result = Result.of(process)
        assert result.code == 0, result.printed[-4000:]
        parts = {part.name: part for part in result.parts}
        found[precision] = Compiled(parts, folder / f"{precision}_kernels")
    return found


@pytest.mark.parametrize("precision", KNOWN)
def test_kernels_assemble(compiled: dict[str, Compiled], precision: str) -> None:
    """Those that ran, and the others of which torch chose them: each for this GPU, and machine code for it."""
    assembled = set()
    for text in compiled[precision].kernels.rglob("*.ptx"):
        assert f".target {TARGET[precision]}\n" in text.read_text()
        binary = text.with_suffix(".cubin").read_bytes()
        assert binary[:4] == ELF and int.from_bytes(binary[18:20], "little") == CUDA
        assembled.add(text.stem)
    ran = compiled[precision].launched("step 0")
    assert ran <= assembled and all(any(name in kernel for kernel in ran) for name in FUSED), sorted(ran)


@pytest.mark.parametrize("precision", KNOWN)
def test_a_second_step_waits_for_nothing(compiled: dict[str, Compiled], precision: str) -> None:
    """And compiles nothing, though its sequences have other lengths; the first step does both."""
    run = compiled[precision]
    assert run.parts["step 0"].of("wait") != []
    for step in range(1, STEPS):
        assert run.parts[f"step {step}"].asked("wait", "pageable", "allocation") == {}
        assert run.launched(f"step {step}") == run.launched("step 0")
