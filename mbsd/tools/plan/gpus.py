"""The GPUs that `mbsd plan` knows, from NVIDIA's data sheets.

Dense peaks of tensor cores and float32, memory bandwidth and NVLink of the SXM form. The data sheets give NVLink as the
sum of both directions; here it is one direction.

- V100: "NVIDIA V100 Tensor Core GPU" data sheet, January 2020 (SXM2: 125 and 15.7 TFLOPS, 900 GB/s, 300 GB/s).
- A100: "NVIDIA A100 Tensor Core GPU" data sheet, June 2021 (SXM4: 312 and 19.5 TFLOPS; 1,555 GB/s with 40 GB, 2,039
  with 80 GB; 600 GB/s).
- H100: "NVIDIA H100 Tensor Core GPU" data sheet (SXM5: 1,979 TFLOPS with sparsity, so 989 dense; 67; 3.35 TB/s;
  900 GB/s).
- H200: "NVIDIA H200 Tensor Core GPU" data sheet (SXM5: as H100, 141 GB at 4.8 TB/s).

The memory is the total that nvidia-smi shows for the board.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mbsd.errors import UserError
from mbsd.metrics.throughput import PEAK_FLOPS

MIB = 1 << 20
GPUS_PER_NODE = 8
NETWORK = 12.5e9  # 100 Gbit/s, bytes/s of a node in one direction


@dataclass(frozen=True)
class Gpu:
    """One board, from its data sheet.

    Attributes:
        half_flops: peak of matrix products in fp16 (and bf16, where supported), FLOP/s.
        single_flops: peak in float32 outside the tensor cores, FLOP/s.
        memory: bytes.
        bandwidth: of the memory, bytes/s.
        nvlink: to the other GPUs of the node, bytes/s in one direction.
        capability: CUDA's compute capability.
        device_names: what CUDA calls the board.
    """

    name: str
    half_flops: float
    single_flops: float
    memory: int
    bandwidth: float
    nvlink: float
    capability: tuple[int, int]
    device_names: tuple[str, ...]

    @property
    def bf16(self) -> bool:
        """Whether the tensor cores support bf16."""
        return self.capability >= (8, 0)


GPUS = {
    "v100-32g": Gpu(
        "V100-SXM2-32GB", PEAK_FLOPS["V100"], 15.7e12, 32510 * MIB, 900e9, 150e9, (7, 0), ("Tesla V100-SXM2-32GB",)
    ),
    "a100-40g": Gpu(
        "A100-SXM4-40GB", PEAK_FLOPS["A100"], 19.5e12, 40960 * MIB, 1555e9, 300e9, (8, 0),
        ("NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"),
    ),
    "a100-80g": Gpu(
        "A100-SXM4-80GB", PEAK_FLOPS["A100"], 19.5e12, 81920 * MIB, 2039e9, 300e9, (8, 0),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM4-80GB"),
    ),
    "h100-80g": Gpu(
        "H100-SXM5-80GB", PEAK_FLOPS["H100"], 67e12, 81559 * MIB, 3350e9, 450e9, (9, 0), ("NVIDIA H100 80GB HBM3",)
    ),
    "h200-141g": Gpu(
        "H200-SXM5-141GB", PEAK_FLOPS["H200"], 67e12, 143771 * MIB, 4800e9, 450e9, (9, 0), ("NVIDIA H200",)
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Cluster:
    """The GPUs of a run; `make_cluster` checks the numbers.

    Attributes:
        gpus: of all nodes together.
        nodes: over which the GPUs are spread evenly.
        network: bandwidth of one node, bytes/s in one direction.
    """

    gpu: Gpu
    gpus: int
    nodes: int
    network: float = NETWORK


def make_cluster(gpu: Gpu, gpus: int, nodes: int | None = None, network: float = NETWORK) -> Cluster:
    """`gpus` GPUs on `nodes` nodes; None: eight GPUs to a node.

    Raises:
        UserError: the GPUs cannot be spread evenly over the nodes.
    """
    nodes = math.ceil(gpus / GPUS_PER_NODE) if nodes is None else nodes
    if gpus < 1 or nodes < 1 or gpus % nodes:
        raise UserError(f"--gpus {gpus} --nodes {nodes}: expected as many GPUs on every node; change one of them")
    return Cluster(gpu, gpus, nodes, network)


def find_gpu(name: str) -> Gpu:
    """The GPU with this name in `GPUS`, in any case, or the only one whose name begins with it.

    Raises:
        UserError: no name, or several, begin with `name`.
    """
    found = [gpu for key, gpu in GPUS.items() if key == name.lower()] or [
        gpu for key, gpu in GPUS.items() if key.startswith(name.lower())
    ]
    if len(found) != 1:
        raise UserError(f"--gpu {name}: expected one of {', '.join(GPUS)}")
    return found[0]
