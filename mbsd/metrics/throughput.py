"""How fast a run is: samples and tokens a second, time spent waiting for data, cores at work, MFU, padding avoided, and
memory."""

from __future__ import annotations

import multiprocessing
import re
import resource
import time
from collections.abc import Sequence

import psutil
import torch

from mbsd.batch import Batch, Views
from mbsd.model.config import BackboneConfig

# Dense half-precision matmul peaks of NVIDIA's data sheets for the SXM forms, in FLOP/s.
PEAK_FLOPS = {"V100": 125e12, "A100": 312e12, "H100": 989e12, "H200": 989e12}
# The same for every form, by its whole name without the vendor's: a slice that MIG made of one is none of them.
PEAK_OF_NAME = {
    r"V100-SXM[23]-(16|32)GB": PEAK_FLOPS["V100"],
    r"V100-PCIE-(16|32)GB": 112e12,
    r"V100S-PCIE-32GB": 130e12,
    r"A100-SXM4-(40|80)GB|A100-PCIE-40GB|A100 80GB PCIe": PEAK_FLOPS["A100"],
    r"H100 80GB HBM3": PEAK_FLOPS["H100"],
    r"H100 PCIe": 756e12,
    r"H100 NVL": 835e12,
    r"H200": PEAK_FLOPS["H200"],
    r"H200 NVL": 835e12,
}


def training_flops(config: BackboneConfig, batch: Batch) -> float:
    """Matmul FLOPs of encoder, patchify and decoder for one forward and backward of a micro-batch: `model_flops`, what
    is written or read out of it, and but for the stages that read all tokens without what `Backbone.represent` leaves
    out."""
    lengths, written = batch.views.real_lengths, batch.generation.lengths if batch.generation is not None else None
    whole = model_flops(config, lengths, batch.images.shape[0]) + 6.0 * config.decoder_multiplications(lengths, written)
    if batch.masks is not None or written is not None:
        return whole
    each = batch.num_samples
    cut = [
        length
        for view, name in enumerate(batch.views.names)
        if name in config.views_to_first
        for length in batch.views.real_lengths[view * each : (view + 1) * each]
    ]
    return whole - flops_left_out(config, cut)


def model_flops(config: BackboneConfig, lengths: Sequence[int], images: int) -> float:
    """Matmul FLOPs of one forward and backward over sequences of these lengths and so many images.

    6 x (encoder weights) x (tokens) + 12 x layers x D x (sum over sequences of length^2)
    + 6 x (patchify multiplications of each image). Heads and embeddings are left out: they are small beside it.
    """
    width, layers = config.hidden_size, config.num_hidden_layers
    encoder_weights = layers * (4 * width * width + 2 * width * config.intermediate_size)
    squares = sum(length * length for length in lengths)
    patchify = config.image_multiplications * images
    return 6.0 * encoder_weights * sum(lengths) + 12.0 * layers * width * squares + 6.0 * patchify


def flops_left_out(config: BackboneConfig, lengths: Sequence[int]) -> float:
    """Matmul FLOPs of the last layer for all but the first tokens, its keys and values excepted.

    6 x (2 D^2 + 2 D x intermediate size) x (tokens - sequences) + 12 x D x (sum over sequences of length^2 - length).
    """
    width, others = config.hidden_size, sum(lengths) - len(lengths)
    weights = 2 * width * width + 2 * width * config.intermediate_size
    return 6.0 * weights * others + 12.0 * width * sum(length * length - length for length in lengths)


def head_flops(config: BackboneConfig, batch: Batch) -> float:
    """Matmul FLOPs of the heads over a micro-batch, forward and backward.

    Stage 1: 6 x (D^2 + D x vocabulary) a masked word, 6 x (D x its targets) a masked patch; else the pooler, 6 x D^2 a
    sequence.
    """
    width = config.hidden_size
    if batch.masks is None:
        return 6.0 * width * width * len(batch.views.real_lengths)
    word, patch = width * (width + config.vocab_size), width * (config.image_target_size or 0)
    return 6.0 * (word * batch.masks.num_words + patch * batch.masks.num_patches)


def data_sheet_peak(device: torch.device) -> float | None:
    """The `peak_of` a device."""
    return peak_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def peak_of(name: str) -> float | None:
    """Of `PEAK_OF_NAME`, for a device as torch names it, say "Tesla V100-SXM2-32GB"; None where it is not there."""
    form = name.removeprefix("NVIDIA ").removeprefix("Tesla ")
    return next((peak for pattern, peak in PEAK_OF_NAME.items() if re.fullmatch(pattern, form)), None)


def padded_lengths(views: Views) -> list[int]:
    """The lengths of the same sequences where each view is a forward of its own, padded to its longest."""
    real = views.real_lengths
    each = len(real) // len(views.names)
    of_view = [real[start : start + each] for start in range(0, len(real), each)]
    return [max(lengths) for lengths in of_view for _ in lengths]


def cpu_seconds() -> float:
    """User and system seconds of this process, of the children it forked (a loader's workers), and of those that have
    ended.
    """
    own = [resource.getrusage(which) for which in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(one.ru_utime + one.ru_stime for one in own)
    for child in multiprocessing.active_children():
        try:
            times = psutil.Process(child.pid).cpu_times()
        except psutil.NoSuchProcess:  # it has ended just now
            continue
        total += times.user + times.system
    return float(total)


class Throughput:
    """Counts between two logs; all of it host arithmetic.

    Args:
        config: of the model, for MFU.
        world_size: ranks that do the same work beside this one.
        device: MFU is logged where the device's peak is in `PEAK_OF_NAME`.
    """

    def __init__(self, config: BackboneConfig, world_size: int, device: torch.device) -> None:
        self.config, self.world_size, self.device = config, world_size, device
        self.peak = data_sheet_peak(device)
        self._reset()

    def _reset(self) -> None:
        self.started, self.samples, self.tokens, self.padded = time.perf_counter(), 0, 0, 0
        self.flops, self.waited, self.used = 0.0, 0.0, cpu_seconds()

    def count(self, batch: Batch) -> None:
        """One micro-batch was trained on."""
        self.samples += batch.num_samples
        self.tokens += batch.num_tokens
        self.padded += sum(padded_lengths(batch.views))
        self.flops += training_flops(self.config, batch)

    def wait(self, seconds: float) -> None:
        """The step stood still that long for its data."""
        self.waited += seconds

    def read(self) -> dict[str, float]:
        """What happened since the last read.

        samples_per_s and tokens_per_s of all ranks together; data_wait, the share of this rank's time; cpu_cores, how
        many cores this rank and its loader's workers kept busy; padding_avoided, the share of tokens that padding would
        have added (`padded_lengths`); memory_gib, the most that torch held on this rank's GPU, or what the process
        holds on a CPU; mfu (0-1) where the device's peak is known.
        """
        seconds, used = time.perf_counter() - self.started, cpu_seconds() - self.used
        rates = {
            "samples_per_s": self.world_size * self.samples / seconds,
            "tokens_per_s": self.world_size * self.tokens / seconds,
            "data_wait": self.waited / seconds,
            "cpu_cores": used / seconds,
            "memory_gib": self._memory() / (1 << 30),
        }
        if self.padded:
            rates["padding_avoided"] = 1 - self.tokens / self.padded
        if self.peak is not None:
            rates["mfu"] = self.flops / seconds / self.peak
        self._reset()
        return rates

    def _memory(self) -> int:
        """Bytes; the allocator counts on the host, so the device is not asked."""
        if self.device.type != "cuda":
            return int(psutil.Process().memory_info().rss)
        most = int(torch.cuda.max_memory_allocated(self.device))
        torch.cuda.reset_peak_memory_stats(self.device)
        return most
