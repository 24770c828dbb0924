"""Catalogue → batches: JPEG bytes to pixels with NVIDIA DALI, on a GPU or on the CPU, and the choice of decoder."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbsd.data.augment import Augmentation
from mbsd.data.decode_torchvision import ImageDecoder, TorchvisionDecoder
from mbsd.errors import UserError


class DaliDecoder:
    """DALI behind the interface of the reference, in the training process with threads of its own.

    On a GPU the JPEGs are decoded there too (`mixed`) and the pixels stay there. The pipeline is built at the first
    batch, so that loader workers, which are forked before, inherit none of its threads.
    """

    in_worker = False

    def __init__(
        self, size: int, device: torch.device | str = "cpu", num_threads: int = 2, max_batch: int = 64
    ) -> None:
        self.size = size
        self.device = torch.device(device)
        self.num_threads = max(1, num_threads)
        self.max_batch = max_batch
        self._pipelines: dict[bool, Any] = {}  # with and without changes of colour

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pipelines": {}}

    def decode(self, jpegs: Sequence[bytes], augmentation: Augmentation) -> Tensor:
        """See ImageDecoder; the result is on the decoder's device."""
        images = torch.empty((len(jpegs), 3, self.size, self.size), dtype=torch.uint8, device=self.device)
        for start in range(0, len(jpegs), self.max_batch):
            part = slice(start, start + self.max_batch)
            self._decode_into(images[part], jpegs[part], augmentation[part])
        return images

    def _decode_into(self, images: Tensor, jpegs: Sequence[bytes], augmentation: Augmentation) -> None:
        from nvidia.dali.plugin.pytorch import feed_ndarray

        colours = augmentation.colours
        pipeline = self._pipelines.get(colours is not None)
        if pipeline is None:
            pipeline = self._pipelines[colours is not None] = self._build(coloured=colours is not None)
        pipeline.feed_input("jpegs", [np.frombuffer(jpeg, dtype=np.uint8) for jpeg in jpegs])
        pipeline.feed_input("windows", augmentation.windows.astype(np.float32))
        pipeline.feed_input("flips", augmentation.flips.astype(np.int32))
        if colours is not None:
            pipeline.feed_input("colours", colours.astype(np.float32))
        (decoded,) = pipeline.run()
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None
        feed_ndarray(decoded.as_tensor(), images, cuda_stream=stream)

    def _build(self, *, coloured: bool) -> Any:
        from nvidia.dali import Pipeline, fn, types

        on_gpu = self.device.type == "cuda"
        device_id = (self.device.index or 0) if on_gpu else None
        if on_gpu and self.device.index is None:
            device_id = torch.cuda.current_device()
        pipeline = Pipeline(
            batch_size=self.max_batch, num_threads=self.num_threads, device_id=device_id, prefetch_queue_depth=1
        )
        with pipeline:
            jpegs = fn.external_source(name="jpegs", dtype=types.UINT8, ndim=1)
            windows = fn.external_source(name="windows", dtype=types.FLOAT, ndim=1)
            flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0)
            # Decodes no more than the window: a fifth less time at four fifths of the area, the same pixels.
            cut = fn.decoders.image_slice(
                jpegs, start=None, rel_start=windows[0:2], rel_end=windows[2:4], axes=[1, 0],
                device="mixed" if on_gpu else "cpu", output_type=types.RGB,
                jpeg_fancy_upsampling=True,  # of `mixed`: chroma as libjpeg-turbo makes it, the decoder of `cpu`
            )  # fmt: skip
            resized = fn.resize(
                cut, resize_x=self.size, resize_y=self.size, interp_type=types.INTERP_LINEAR, antialias=True
            )
            if coloured:
                colours = fn.external_source(name="colours", dtype=types.FLOAT, ndim=1)
                # Contrast is about mid-grey here and about the picture's own mean in torchvision.
                resized = fn.color_twist(
                    resized, brightness=colours[0], contrast=colours[1], saturation=colours[2], dtype=types.UINT8
                )
            # Mirrors, and turns rows of RGB into planes; mean 0 and deviation 1 leave the values alone.
            planes = fn.crop_mirror_normalize(
                resized, mirror=flips, dtype=types.UINT8, output_layout="CHW", mean=[0.0], std=[1.0]
            )
            pipeline.set_outputs(planes)
        pipeline.build()
        return pipeline


def dali_installed() -> bool:
    """Whether `nvidia.dali` can be imported."""
    try:
        return importlib.util.find_spec("nvidia.dali") is not None
    except ModuleNotFoundError:  # not even the package `nvidia`
        return False


def make_decoder(
    name: str, size: int, device: torch.device | str = "cpu", num_threads: int = 2, max_batch: int = 64
) -> ImageDecoder:
    """The decoder that data.decoder names.

    Args:
        name: torchvision; dali; or auto: DALI on a GPU where it is installed, else torchvision.
        size: height and width of its results, in pixels.
        device: where the model lives.
        num_threads: of DALI.
        max_batch: the most pictures DALI takes at once; more are decoded in turns.

    Raises:
        UserError: dali is asked for and not installed, or the name is none of the three.
    """
    if name not in ("auto", "torchvision", "dali"):
        raise UserError(f"data.decoder={name}: expected auto, torchvision or dali")
    if name == "auto":
        name = "dali" if torch.device(device).type == "cuda" and dali_installed() else "torchvision"
    if name == "torchvision":
        return TorchvisionDecoder(size)
    if not dali_installed():
        raise UserError(
            "data.decoder=dali: NVIDIA DALI is not installed; install the extra of your CUDA, "
            'pip install "mbsd[cu12]" or "mbsd[cu13]", or set data.decoder=torchvision'
        )
    return DaliDecoder(size, device, num_threads, max_batch)
