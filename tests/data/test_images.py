from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from mbsd.data.augment import WHOLE_IMAGE, Augmentation, draw_augmentation, no_augmentation, pixels, training_window
from mbsd.data.decode_dali import DaliDecoder, make_decoder
from mbsd.data.decode_torchvision import TorchvisionDecoder
from mbsd.errors import UserError
from tests.data.conftest import DECODERS, needs_dali, picture

NUM = 7


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(NUM):
        buffer = io.BytesIO()
        picture(rng, int(rng.integers(60, 400)), int(rng.integers(60, 400))).save(buffer, "JPEG", quality=90)
        encoded.append(buffer.getvalue())
    return encoded


def transform(kind: str, colour_jitter: float = 0.0) -> Augmentation:
    if kind == "evaluation":
        return no_augmentation(NUM)
    drawn = draw_augmentation([np.random.default_rng(1 + i) for i in range(NUM)], (0.3, 0.9), 0.5, colour_jitter)
    assert 0 < drawn.flips.sum() < NUM
    return drawn


def by_pillow(jpeg: bytes, window: np.ndarray, flip: bool, size: int) -> np.ndarray:
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    image = image.crop(pixels(window, *image.size)).resize((size, size), Image.Resampling.BILINEAR)
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image).transpose(2, 0, 1).astype(np.float64)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_torchvision_agrees_with_pillow(jpegs: list[bytes], kind: str, size: int) -> None:
    drawn = transform(kind)
    images = TorchvisionDecoder(size).decode(jpegs, drawn)
    assert images.shape == (NUM, 3, size, size) and images.dtype == torch.uint8
    for image, jpeg, window, flip in zip(images, jpegs, drawn.windows, drawn.flips, strict=True):
        assert np.abs(image.numpy() - by_pillow(jpeg, window, bool(flip), size)).mean() <= 2


@needs_dali
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("kind", ["evaluation", "training"])
def test_dali_agrees_with_torchvision(jpegs: list[bytes], kind: str, size: int) -> None:
    drawn = transform(kind)
    expected = TorchvisionDecoder(size).decode(jpegs, drawn).float()
    images = DaliDecoder(size, max_batch=3).decode(jpegs, drawn)  # 3 + 3 + 1 pictures
    assert images.shape == expected.shape and images.dtype == torch.uint8
    assert (images.float() - expected).abs().mean(dim=(1, 2, 3)).max() <= 2


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_keeps_its_results_takes_no_picture_and_can_be_pickled(name: str, jpegs: list[bytes]) -> None:
    drawn = transform("training", colour_jitter=0.4)
    decoder = make_decoder(name, 32, max_batch=4)
    assert decoder.decode([], drawn[:0]).shape == (0, 3, 32, 32)
    first = decoder.decode(jpegs[:2], drawn[:2])
    before = first.clone()
    decoder.decode(jpegs[2:6], drawn[2:6])
    assert torch.equal(first, before), "a later batch does not write over an earlier one"
    again = pickle.loads(pickle.dumps(decoder)).decode(jpegs[:2], drawn[:2])
    assert torch.equal(first, again)


@needs_dali
def test_dali_makes_chroma_on_a_gpu_as_on_the_cpu() -> None:
    """Without the argument `mixed` repeats each value of subsampled chroma where `cpu` interpolates."""
    for coloured in (False, True):
        graph = DaliDecoder(32)._build(coloured=coloured).serialize()  # a protobuf: name, type, field 6 = 1
        assert graph.count(b"decoders__ImageSlice") == graph.count(b"jpeg_fancy_upsampling\x12\x04bool0\x01") == 1


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dali_on_a_gpu_decodes_edges_of_colour_as_on_the_cpu() -> None:
    """Stripes of red and blue, three pixels wide: with repeated chroma the mean pixel would be off by 24."""
    stripes = np.zeros((96, 96, 3), np.uint8)
    stripes[:, np.arange(96) // 3 % 2 == 0, 0] = stripes[:, np.arange(96) // 3 % 2 == 1, 2] = 220
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "JPEG", quality=95, subsampling="4:2:0")
    jpegs, plain = [buffer.getvalue()] * 4, no_augmentation(4)
    found, expected = (DaliDecoder(96, device, max_batch=4).decode(jpegs, plain).cpu() for device in ("cuda", "cpu"))
    assert (found.float() - expected.float()).abs().mean() <= 2


@needs_dali
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dali_on_a_gpu_agrees_with_torchvision(jpegs: list[bytes]) -> None:
    drawn = transform("training")
    expected = TorchvisionDecoder(224).decode(jpegs, drawn).float()
    images = make_decoder("auto", 224, "cuda", max_batch=4).decode(jpegs, drawn)
    assert images.device.type == "cuda"
    assert (images.cpu().float() - expected).abs().mean() <= 2


@pytest.mark.parametrize("name", DECODERS)
def test_colours_change_as_asked(name: str) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 50), (200, 100, 60)).save(buffer, "JPEG", quality=95)
    grey = 0.299 * 200 + 0.587 * 100 + 0.114 * 60  # as both libraries weigh a colour (ITU-R BT.601)
    plain = no_augmentation(3)
    factors = np.array([[0.5, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])  # half as bright, grey, as it is
    images = make_decoder(name, 16).decode([buffer.getvalue()] * 3, Augmentation(plain.windows, plain.flips, factors))
    found = images.float().mean(dim=(2, 3)).tolist()
    for image, expected in zip(found, ([100, 50, 30], [grey] * 3, [200, 100, 60]), strict=True):
        assert image == pytest.approx(expected, abs=3)


def test_colours_are_drawn_within_the_jitter_and_only_where_asked_for() -> None:
    rngs = [np.random.default_rng(i) for i in range(2000)]
    drawn = draw_augmentation(rngs, (0.5, 1.0), 0.5, 0.3)
    assert drawn.colours is not None and 0.7 <= drawn.colours.min() < 0.71 and 1.29 < drawn.colours.max() <= 1.3
    assert np.abs(np.corrcoef(drawn.colours.T) - np.eye(3)).max() < 0.1
    without = draw_augmentation([np.random.default_rng(i) for i in range(2000)], (0.5, 1.0), 0.5)
    assert without.colours is None
    assert np.array_equal(without.windows, drawn.windows), "asking for colours moves no crop"


def test_grey_pictures_become_rgb() -> None:
    buffer = io.BytesIO()
    Image.new("L", (40, 50), 77).save(buffer, "JPEG")
    image = TorchvisionDecoder(8).decode([buffer.getvalue()], no_augmentation(1))
    assert (image.float() - 77).abs().max() <= 1


def test_windows_are_drawn_as_described() -> None:
    rng = np.random.default_rng(0)
    drawn = [training_window(rng, (0.25, 1.0), 0.3) for _ in range(6000)]
    x0, y0, x1, y1 = np.array([window for window, _ in drawn]).T
    assert min(x0.min(), y0.min()) >= 0 and max(x1.max(), y1.max()) <= 1 + 1e-12
    width, height = x1 - x0, y1 - y0
    area, ratio = width * height, width / height
    # Uniform: the deciles of the area lie where they should.
    assert np.abs(np.quantile(area, [0.1, 0.5, 0.9]) - [0.325, 0.625, 0.925]).max() < 0.03
    assert ratio.min() >= 0.75 - 1e-9 and ratio.max() <= 4 / 3 + 1e-9
    assert abs(np.log(ratio).mean()) < 0.01
    small = area < 0.5  # far from the edge, the whole range of shapes is used evenly
    assert abs(np.log(ratio[small]).std() - np.log(16 / 9) / np.sqrt(12)) < 0.01
    assert abs(np.corrcoef(x0[small], y0[small])[0, 1]) < 0.1
    assert abs(np.mean([flip for _, flip in drawn]) - 0.3) < 0.03
    window, flip = training_window(rng, (1.0, 1.0), 0.0)
    assert (window, flip) == (WHOLE_IMAGE, False)


def test_a_window_is_never_empty() -> None:
    assert pixels(np.array([0.5, 0.999, 0.5, 1.0]), 10, 3) == (5, 2, 6, 3)
    assert pixels(np.array([1.0, 1.0, 1.0, 1.0]), 10, 3) == (9, 2, 10, 3)
    assert pixels(np.array(WHOLE_IMAGE), 10, 3) == (0, 0, 10, 3)


def test_the_choice_of_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_decoder("auto", 32, "cpu"), TorchvisionDecoder)
    assert make_decoder("torchvision", 32).in_worker
    with pytest.raises(UserError, match="data.decoder=pil"):
        make_decoder("pil", 32)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mbsd\[cu12\].*mbsd\[cu13\]"):
        make_decoder("dali", 32)
    assert isinstance(make_decoder("auto", 32, "cuda"), TorchvisionDecoder)
