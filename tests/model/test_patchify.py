"""The overlapping stem against the formula written out, its sizes, and which settings fit a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.run import PretrainConfig, RunConfig
from mbsd.errors import UserError
from mbsd.model.heads import MbsdForMatching
from mbsd.model.load import start_model
from mbsd.model.mbsd import MbsdModel
from mbsd.model.patchify import Patchify, ResidualBlock
from tests.model.reference import VOCABULARY, tiny_config

STRIDES, CHANNELS, WIDTH = (4, 2, 2), (6, 8), 12


def channel_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[I, C, h, w], each pixel normalised over C, in the textbook's steps."""
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def convolution(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
    """Every output pixel as one sum over its window."""
    kernel = weight.shape[-1]
    windows = F.pad(x, (padding,) * 4).unfold(2, kernel, stride).unfold(3, kernel, stride)
    return torch.einsum("ichwkl,ockl->iohw", windows, weight) + bias[:, None, None]


def written_out(stem: Patchify, pixels: Tensor, blocks: int) -> Tensor:
    """[I, patches, D] by the formula: convolutions of 2 stride - 1, norm and ReLU between, residual blocks inside."""
    weights, at, x = {name: p.detach() for name, p in stem.named_parameters()}, 0, pixels

    def pair(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"layers.{name}.weight"], weights[f"layers.{name}.bias"]

    for index, stride in enumerate(STRIDES):
        if index:
            x = channel_norm(x, *pair(f"{at}")).relu()
            at += 2
        x = convolution(x, *pair(f"{at}"), stride=stride, padding=stride // 2)
        at += 1
        for _ in range(blocks if 0 < index < len(STRIDES) - 1 else 0):
            inner = convolution(channel_norm(x, *pair(f"{at}.norm1")).relu(), *pair(f"{at}.conv1"), 1, 1)
            x = x + convolution(channel_norm(inner, *pair(f"{at}.norm2")).relu(), *pair(f"{at}.conv2"), 1, 1)
            at += 1
    return x.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("blocks", [1, 2])
def test_the_overlapping_stem_is_the_formula(blocks: int) -> None:
    torch.manual_seed(0)
    stem = Patchify(STRIDES, CHANNELS, WIDTH, blocks).double()
    pixels = torch.randn(3, 3, 64, 32, dtype=torch.float64)
    found = stem(pixels)
    assert found.shape == (3, 4 * 2, WIDTH)
    torch.testing.assert_close(found, written_out(stem, pixels, blocks), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("blocks", "reached"), [(0, {5}), (1, set(range(16)))])
def test_a_pixel_reaches_its_neighbours_only_where_patches_overlap(blocks: int, reached: set[int]) -> None:
    """Patch 5 (of 4 x 4) changes its own feature; where blocks are, those of all that are two patches away or less."""
    torch.manual_seed(0)
    stem = Patchify(STRIDES, CHANNELS, WIDTH, blocks).double()
    pixels = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    touched = pixels.clone()
    touched[:, :, 16:32, 16:32] += 1  # patch 5
    changed = (stem(pixels) - stem(touched)).abs().amax(-1)[0] > 1e-9
    assert set(changed.nonzero().flatten().tolist()) == reached


def test_what_a_masked_patch_holds_reaches_no_feature_through_the_overlap() -> None:
    """Patch 5 is masked, patch 6 stands in for patch 9: the pixels of 5 and 9 change nothing, those of 6 do."""
    torch.manual_seed(0)
    model = MbsdModel(
        tiny_config(image_size=64, patchify_strides=STRIDES, patchify_channels=CHANNELS, patchify_blocks=1)
    )
    model.eval()
    pixels = torch.randn(1, 3, 64, 64)
    source = torch.arange(16)
    source[5], source[9] = 16, 6
    embedded = model.embed_images(pixels, source)

    def with_other(patch: int) -> Tensor:
        changed = pixels.clone()
        row, column = divmod(patch, 4)
        changed[:, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16] += 1
        return model.embed_images(changed, source)

    assert torch.equal(with_other(5), embedded) and torch.equal(with_other(9), embedded)
    differs = (with_other(6) - embedded).abs().amax(-1) > 1e-6
    assert differs[6] and differs[9] and not differs[5]


def test_residual_blocks_start_as_the_identity_and_are_drawn_otherwise() -> None:
    model = MbsdModel(tiny_config(patchify_blocks=2))
    blocks = [module for module in model.modules() if isinstance(module, ResidualBlock)]
    assert len(blocks) == 2 * 2  # of the two convolutions between the first and the last
    for block in blocks:
        x = torch.randn(1, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(x), x)
        assert block.conv1.weight.std() > 0.01


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_multiplications_are_those_of_the_convolutions(blocks: int) -> None:
    config = tiny_config(patchify_blocks=blocks)
    model, counted = MbsdModel(config), []
    for module in model.patchify.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(
                lambda layer, _, out: counted.append(layer.weight.numel() * out.shape[2] * out.shape[3])
            )
    model.patchify(torch.zeros(1, 3, config.image_size, config.image_size))
    assert config.image_multiplications == sum(counted)


def test_blocks_belong_to_the_overlapping_stem() -> None:
    ModelConfig(patchify="overlap", patchify_blocks=2).check()
    with pytest.raises(UserError, match=r"model\.patchify_blocks=2: model\.patchify=conv has no residual blocks"):
        ModelConfig(patchify_blocks=2).check()
    with pytest.raises(UserError, match=r"model\.patchify=overlap: model\.architecture=bert does not read it"):
        ModelConfig(architecture="bert", patchify="overlap").check()


@pytest.mark.parametrize("strides", [(16,), (8, 4)])
def test_the_overlapping_stem_needs_convolutions_between(strides: tuple[int, ...]) -> None:
    """With fewer than three there is no place for residual blocks, and `patchify_blocks` would do nothing."""
    channels = (8,) * (len(strides) - 1)
    ModelConfig(patchify_strides=strides, patchify_channels=channels).check()
    ModelConfig(patchify="overlap", patchify_strides=(4, 2, 2), patchify_channels=(8, 8)).check()
    with pytest.raises(UserError) as refused:
        ModelConfig(patchify="overlap", patchify_strides=strides, patchify_channels=channels).check()
    assert str(refused.value) == (
        f"model.patchify=overlap: model.patchify_strides={list(strides)} has no convolution between the first and the "
        "last; give three strides or more"
    )


def started(folder: Path, blocks: int, **wanted: Any) -> MbsdForMatching:
    """A start with settings `wanted` from a saved model of a stem with `blocks`."""
    MbsdForMatching(tiny_config(patchify_blocks=blocks)).save_pretrained(folder)
    run = RunConfig("run", max_steps=1, init_from="runs/before")
    data = DataConfig("catalog", image_size=64, max_text_tokens=24)
    return start_model(MbsdForMatching, PretrainConfig(run, data, ModelConfig(**wanted)), VOCABULARY, folder)


@pytest.mark.parametrize(
    ("blocks", "asked", "found"), [(0, 1, "none"), (0, 2, "none"), (2, 1, "overlap with model.patchify_blocks=2")]
)
def test_a_checkpoint_of_another_stem_is_refused(blocks: int, asked: int, found: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as refused:
        started(tmp_path, blocks, patchify="overlap", patchify_blocks=asked)
    assert str(refused.value) == (
        f"model.patchify=overlap with model.patchify_blocks={asked}, but run.init_from=runs/before has {found}; leave "
        "it out: a checkpoint brings its own"
    )


@pytest.mark.parametrize(("blocks", "wanted"), [(0, {}), (2, {}), (2, {"patchify": "overlap", "patchify_blocks": 2})])
def test_a_checkpoint_brings_its_stem(blocks: int, wanted: dict[str, Any], tmp_path: Path) -> None:
    model = started(tmp_path, blocks, **wanted)
    assert model.config.patchify_blocks == blocks
    kept = load_file(tmp_path / "model.safetensors")
    stem = {name: weight for name, weight in model.state_dict().items() if "patchify" in name}
    assert sum(isinstance(module, ResidualBlock) for module in model.modules()) == 2 * blocks and stem
    assert all(weight.equal(kept[name]) for name, weight in stem.items())
