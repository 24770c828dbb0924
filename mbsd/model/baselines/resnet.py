"""Torchvision's ResNets as image encoders of crops (FashionBERT, Kaleido-BERT, M6) and of whole pictures (OFA)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import initialization as init

from mbsd.errors import UserError
from mbsd.model.taken_over import FromPublished

CROPS_AT_ONCE = 128  # without gradients: 64 pictures of Kaleido-BERT are 3,520 crops
_COUNTER = "num_batches_tracked"  # that nothing reads, and that old files lack
_PARTS = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")  # of FirstStages
STAGE_FEATURES = (256, 512, 1024, 2048)  # of each stage's output
SPARE = ("fc", "layer4")  # parts of a file that a network may lack
RESNET_50, RESNET_101 = (3, 4, 6, 3), (3, 4, 23, 3)  # blocks of their stages


class HeldBatchNorm(nn.BatchNorm2d):
    """BatchNorm by the statistics it was loaded with, in training too, as detectors fine-tune a ResNet.

    Statistics of a micro-batch would make a sample's score depend on its neighbours and on the number of ranks.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        mean, variance = self.running_mean, self.running_var
        assert mean is not None and variance is not None, "they are held"
        # Where weights are halved DeepSpeed leaves the statistics as they are; torch wants one precision of all four.
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, self.eps)


class CropEncoder(nn.Module):
    """ResNet-50 on equal crops of a picture, pooled: F = `features_of(blocks)` numbers a crop.

    Args:
        grids: g cuts the picture into g x g crops, row by row; one grid after the other.
        crop_size: pixels of a crop's side as the ResNet sees it, whatever its size in the picture: crops are resized,
            each is a picture of its own to it.
        blocks: of its stages; with three of them it has no fourth.
    """

    def __init__(self, grids: tuple[int, ...], crop_size: int, blocks: Sequence[int] = RESNET_50) -> None:
        super().__init__()
        self.grids, self.crop_size, self.width = grids, crop_size, features_of(blocks)
        self.resnet = _resnet(blocks)
        self.resnet.fc = nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalised pixels [I, 3, h, w] -> [I, crops, F]; I may be 0."""
        return self.features(torch.cat([self.cut(pixels, grid) for grid in self.grids], dim=1))

    def features(self, crops: Tensor) -> Tensor:
        """The ResNet on crops [I, n, 3, crop_size, crop_size] -> [I, n, F]; I may be 0."""
        images, count = crops.shape[:2]
        if images == 0:
            return crops.new_zeros(0, count, self.width)
        flat = crops.flatten(0, 1)
        parts = [flat] if torch.is_grad_enabled() else flat.split(CROPS_AT_ONCE)
        return torch.cat([self.resnet(part) for part in parts]).view(images, count, self.width)

    def cut(self, pixels: Tensor, grid: int) -> Tensor:
        """[I, grid * grid, 3, crop_size, crop_size]; grids need not divide the picture's side."""
        images, side = pixels.shape[0], self.crop_size
        size = (grid * side, grid * side)
        resized = F.interpolate(pixels, size, mode="bilinear") if images else pixels.new_zeros(0, 3, *size)
        cut = resized.view(images, 3, grid, side, grid, side).permute(0, 2, 4, 1, 3, 5)
        return cut.reshape(images, grid * grid, 3, side, side)


class FirstStages(nn.Module):
    """A ResNet without its last stage: [I, 3, h, w] -> [I, ceil(h / 16) * ceil(w / 16), 1024]; I may be 0.

    Args:
        blocks: of the three stages; ResNet-101's are 3, 4 and 23.
    """

    def __init__(self, blocks: Sequence[int] = RESNET_101[:3]) -> None:
        super().__init__()
        resnet = _resnet(blocks)
        self.stages = nn.Sequential(
            resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool, resnet.layer1, resnet.layer2, resnet.layer3
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        if pixels.shape[0] == 0:
            return pixels.new_zeros(0, -(-pixels.shape[2] // 16) * -(-pixels.shape[3] // 16), STAGE_FEATURES[2])
        found: Tensor = self.stages(pixels)
        return found.flatten(2).transpose(1, 2)


def features_of(blocks: Sequence[int]) -> int:
    """Numbers that a ResNet with so many stages has of a place."""
    return STAGE_FEATURES[len(blocks) - 1]


def init_resnet(module: nn.Module) -> None:
    """What initialising a ResNet takes beyond transformers' own initialisation: torchvision's convolutions, and the
    last scale of each block at 1/4.

    The statistics are held, so nothing takes back what 16 blocks add to each other: with 1 the variance would double at
    each of them.
    """
    if isinstance(module, nn.Conv2d):
        init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for block in module.children():
        if isinstance(block, torchvision.models.resnet.Bottleneck):
            init.constant_(block.bn3.weight, 0.25)


def load_resnet(encoder: CropEncoder, path: str, prefix: str = "") -> FromPublished:
    """Read torchvision's weights of ResNet-50 from a local file (.pth or .safetensors); its classifier is left over,
    and where the encoder has three stages the fourth.

    Args:
        prefix: how the names of the encoder's weights begin in the model that they are reported of.

    Raises:
        UserError: no such file, or other weights.
    """
    return _load(encoder.resnet, path, "ResNet-50", f"{prefix}resnet.")


def load_first_stages(encoder: FirstStages, path: str, prefix: str = "") -> FromPublished:
    """As `load_resnet`, of torchvision's ResNet-101 and three stages."""
    return _load(encoder.stages, path, "ResNet-101", f"{prefix}stages.")


def _load(network: nn.Module, path: str, kind: str, prefix: str) -> FromPublished:
    """Give a ResNet, or a sequence of its first parts, the weights of a file, which may hold `SPARE` parts more."""
    setting, file = f"model.image_weights={path}", kind.lower().replace("-", "")
    advice = f"give torchvision's {file} weights as a .pth or .safetensors file on this machine"
    try:
        held: Any = load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)
        held = {name.removeprefix("module."): value for name, value in held.get("state_dict", held).items()}
    except (OSError, EOFError, SafetensorError, UnpicklingError, RuntimeError, AttributeError, ValueError) as error:
        raise UserError(f"{setting}: no {kind} could be read ({str(error).splitlines()[0]}); {advice}") from error
    held = {name: value for name, value in held.items() if not name.endswith(_COUNTER)}
    own = {_named(network, name): value for name, value in network.state_dict().items() if not name.endswith(_COUNTER)}
    left_over = held.keys() - own.keys()
    for wrong, names in (
        ("of its weights are missing", own.keys() - held.keys()),
        ("weights are no part of it", {name for name in left_over if name.partition(".")[0] not in SPARE}),
        ("of its weights have other shapes", {n for n in own.keys() & held.keys() if own[n].shape != held[n].shape}),
    ):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise UserError(f"{setting}: no {kind} could be read ({len(names)} {wrong}: {first}, ...); {advice}")
    for name, value in own.items():
        value.copy_(held[name])
    parameters = {f"{prefix}{name}" for name, _ in network.named_parameters()}
    return FromPublished(kind, setting, parameters, own.keys(), left_over)


def _named(network: nn.Module, name: str) -> str:
    """torchvision's name of a weight, whose parts have numbers in a sequence."""
    if not isinstance(network, nn.Sequential):
        return name
    number, _, rest = name.partition(".")
    return f"{_PARTS[int(number)]}.{rest}"


@functools.cache
def multiplications(side: int, blocks: tuple[int, ...] = RESNET_50) -> int:
    """Of a ResNet on one picture of `side` pixels, counted without computing it."""
    with torch.device("meta"):
        network, picture = _resnet(blocks).eval(), torch.empty(1, 3, side, side)
        network.fc = nn.Identity()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(picture)
    return int(counter.get_total_flops()) // 2


def _resnet(blocks: Sequence[int]) -> Any:
    """With as many stages as there are numbers of blocks.

    On the meta device where the caller is; torchvision's own drawing is left to transformers' initialisation.
    """
    block, spare = torchvision.models.resnet.Bottleneck, len(RESNET_50) - len(blocks)
    network = torchvision.models.ResNet(block, [*blocks, *[1] * spare], norm_layer=HeldBatchNorm)
    if spare:
        network.layer4 = nn.Identity()
    return network
