"""Settings: the stages of pre-training and the downstream tasks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mbsd.config.ranges import at_least, share
from mbsd.errors import UserError

MAX_CONTRASTIVE_DIM = 4096


@dataclass(frozen=True)
class MaskingConfig:
    """Stage 1 (Eq. 1, 2)."""

    mlm_probability: float = share(default=0.15)
    """Probability that a word piece is masked."""
    mpm_probability: float = share(default=0.5)
    """Share of the patches that are masked."""
    mpm_corruption: Literal["replace", "bert"] = "replace"
    """replace: every masked patch becomes the mask vector; bert: 80% mask, 10% another patch, 10% kept."""
    mpm_target: Literal["pixels", "hog"] = "pixels"
    """What a masked patch predicts. pixels: its pixels, mean absolute error (Eq. 2); hog: of each of its cells of 8 x 8
    pixels the directions of its gradients and its mean colour, mean squared error (MaskFeat). hog needs patches whose
    side is a multiple of 8."""
    cross_modal: bool = False
    """Beside what is masked, one modality predicts the other: the vector of a picture (view image) the words of its
    title, that of a title (view text), and that of both (view full), the gradients and colours of the picture. So the
    vectors of all views are trained before there are labels. It encodes three views, not full alone, and needs patches
    whose side is a multiple of 8."""


@dataclass(frozen=True)
class ItmConfig:
    """Image-text matching: does the picture belong to the title."""

    negatives: Literal["random", "hard"] = "random"
    """random: half of the titles are shown the picture of another item, drawn from the whole split (ViLT); hard: every
    title is shown its own, and again that of the other sample of its micro-batch whose title and picture are the most
    like its own (after ALBEF). Products are told apart by the catalogue's keys (`mbsd catalog keys`)."""


@dataclass(frozen=True)
class FashionBertTasks:
    """The stage fashionbert: masked words, features of masked crops, text-image alignment."""

    mlm_probability: float = share(default=0.15)
    """Probability that a word piece is masked."""
    mpm_probability: float = share(default=0.1)
    """Share of a picture's crops that are hidden: 2 of 16. The authors' example hides 5 of 64."""
    mismatched: float = share(default=0.5)
    """Probability that a title is shown beside another product's picture; words and crops are asked for where the two
    belong together."""
    weights: Literal["adaptive", "equal"] = "adaptive"
    """Of the three losses: by their own sizes, as the paper's adaptive loss has it, or a third each."""
    weight_gradient: bool = True
    """The gradient goes through adaptive weights too, as in the authors' code; false: they are constants of a step."""

    def check(self) -> None:
        """Raise UserError where a setting means nothing."""
        if self.weights == "equal" and not self.weight_gradient:
            raise UserError("fashionbert.weight_gradient=false: fashionbert.weights=equal are constants: remove it")


@dataclass(frozen=True)
class KaleidoTasks:
    """The stage kaleido: masked words, image-text matching and a puzzle at each scale of crops."""

    mlm_probability: float = share(default=0.15)
    """Probability that a word piece is masked."""
    mismatched: float = share(default=0.5)
    """Probability that a title is shown beside another product's picture; words are asked for where the two belong
    together."""
    grey: int = at_least(1, default=2)
    """Crops of the 4 x 4 grid that are shown without colour and whose features in colour are predicted; at most 16."""
    blank: int = at_least(1, default=3)
    """Crops of the 5 x 5 grid that are not shown and whose features are predicted; at most 25."""

    def check(self) -> None:
        """Raise UserError where more crops are asked for than there are."""
        for name, value, most in (("grey", self.grey, 16), ("blank", self.blank, 25)):
            if value > most:
                raise UserError(f"kaleido.{name}={value}: that grid has {most} crops: expected 1 to {most}")


@dataclass(frozen=True)
class SdmiConfig:
    """Stage 2 (Eq. 3-11) and its switches for Table 6."""

    variant: Literal["paper", "released"] = "paper"
    """The losses as the paper writes them, or as the authors' released code computes them."""
    unimodal_losses: bool = True
    """L_QT and L_QV; off together with distillation: row 6."""
    distillation: bool = True
    """L_KL and L_RS; off alone: row 7."""
    weight: Literal["adaptive"] | float = "adaptive"
    """w_i of Eq. 9, or a constant wherever the strong view is right (row 8)."""


@dataclass(frozen=True)
class ContrastiveConfig:
    """The contrastive stage: a product's title and picture are pulled together, other products pushed away."""

    dim: int = at_least(1, default=512)
    """Numbers of a vector in the space that titles and pictures share; at most 4096."""
    projection: Literal["per_view", "shared"] = "per_view"
    """One projection for titles and one for pictures, or one for both."""
    loss: Literal["softmax", "sigmoid"] = "softmax"
    """softmax over the global batch (CLIP), or a yes/no question for each pair (SigLIP)."""
    targets: Literal["shared", "masked", "own"] = "shared"
    """What other items of the same product are: positives that share the mass; neither positive nor negative; or
    negatives, as in CLIP."""
    same: tuple[Literal["product", "title", "picture", "near_picture"], ...] = ("product", "title", "picture")
    """Kinds of keys by which two items are the same product (`mbsd catalog keys`); those that the catalogue lacks are
    left out. near_picture is not among the defaults: look at what it would join first."""
    temperature: Literal["learned"] | float = "learned"
    """What similarities are multiplied by (CLIP's logit scale): learned, or a constant."""
    temperature_start: float | None = None
    """Where the learned one starts. Default: 1 / 0.07 for softmax, 10 for sigmoid."""
    temperature_max: float = 100.0
    """The learned one is held below this."""
    chunk: int = at_least(1, default=1024)
    """Rows of the similarity matrix that are held at a time, fewer of them in a global batch above 4096, so that its
    memory does not grow with it. Fewer rows, less memory, the same numbers."""
    batch_schedule: tuple[tuple[float, int], ...] | None = None
    """Smaller global batches at the beginning: from which share of the run's samples on which batch, say
    [[0, 2048], [0.1, 8192]]. By the number of micro-steps alone; the last is train_batch_size of DeepSpeed's JSON.
    Epochs are as long as ever; the learning rate goes by steps. Default: every step has train_batch_size."""
    check_passes: bool = False
    """To find faults: stop where the vectors of the second pass are not bit for bit those of the first. It waits for
    the device in each step."""

    def check(self) -> None:
        """Raise UserError where a number is out of its range."""
        if self.dim > MAX_CONTRASTIVE_DIM:
            raise UserError(f"contrastive.dim={self.dim}: expected at most {MAX_CONTRASTIVE_DIM}")
        if len(set(self.same)) < len(self.same):
            raise UserError(f"contrastive.same={list(self.same)}: names a kind of key twice")
        if self.batch_schedule is not None:
            _check_schedule(self.batch_schedule)
        numbers = {"temperature": self.temperature, "temperature_start": self.temperature_start}
        for name, value in (*numbers.items(), ("temperature_max", self.temperature_max)):
            if isinstance(value, (int, float)) and not 0 < value < math.inf:
                raise UserError(f"contrastive.{name}={value}: expected a number above 0")
        if self.temperature != "learned" and self.temperature_start is not None:
            raise UserError(
                f"contrastive.temperature_start={self.temperature_start}: contrastive.temperature={self.temperature} "
                "is a constant, which starts nowhere else; remove one"
            )


def _check_schedule(schedule: tuple[tuple[float, int], ...]) -> None:
    shown = f"contrastive.batch_schedule={[list(phase) for phase in schedule]}"
    shares = [share for share, _ in schedule]
    if not shares or shares[0] != 0 or shares != sorted(set(shares)) or shares[-1] >= 1:
        raise UserError(f"{shown}: expected shares that begin at 0 and rise, all below 1")
    if any(batch < 2 for _, batch in schedule):
        raise UserError(f"{shown}: expected batches of 2 samples or more")


@dataclass(frozen=True)
class GenerativeConfig:
    """The generative stage of m6 and ofa: an item's title is written, word piece after word piece."""

    captioning: float = share(default=0.5)
    """Share of the samples with a picture that are captioned: the title is written from the picture alone. All others
    are denoised: it is written from the picture, where there is one, and the corrupted title."""
    noise: float = share(default=0.3)
    """Of denoising: the share of a title's word pieces that are hidden, one piece at least."""
    span: float = at_least(1, default=3.0)
    """Of denoising: mean number of word pieces in a row that are hidden together; one [MASK] stands for all of them."""
    caption_prompt: str | None = None
    """Words that stand before the picture in captioning, as a query does in the tasks; cut at data.max_query_tokens.
    Default: of ofa "what does the image describe?", of m6 none."""
    denoising_prompt: str | None = None
    """The same of denoising. Default: of ofa "what is the complete text of", of m6 none."""


@dataclass(frozen=True)
class TaskConfig:
    """A downstream task that is trained. Clustering is not: `launchers/evaluate.py` does it with any model."""

    name: Literal["attributes", "alignment", "classification", "sensitive"] = "attributes"
    """attributes: does the tag hold for the item; alignment: are two items one product; classification: into the
    table's categories; sensitive: is the item of the category `positive`."""
    views: tuple[Literal["full", "text", "image"], ...] = ("full",)
    """Views a sample is trained on, all in one forward; the losses are averaged."""
    class_weights: Literal["balanced", "sqrt"] | tuple[float, ...] | None = None
    """Weight of a row in the loss, by its class. balanced: every class weighs the same in total; sqrt: the square root
    of that, half way between balanced and none; or one number a class, in the order of the labels (sensitive: others,
    positive). Scaled so that the training rows' mean is 1."""
    label_smoothing: float = share(default=0.0)
    """Share of a label that is spread evenly over all classes (yes and no, where there are two). The loss of a
    validation is smoothed too."""
    positive: str | None = None
    """Of sensitive, which needs it: the category that is to be found; all others are its opposite."""
    pair_head: Literal["compare", "concat"] | None = None
    """Of alignment: a linear layer on [h_s; h_t; |h_s - h_t|; h_s * h_t] (the default), or on [h_s; h_t] alone as the
    paper has it: a sum of two terms of one item each, which cannot compare two items."""

    def check(self) -> None:
        """Raise UserError where a setting belongs to another task, or the task lacks one."""
        if (self.name == "sensitive") != (self.positive is not None):
            wrong = "needs task.positive, the category to find" if self.positive is None else "reads no task.positive"
            raise UserError(f"task.name={self.name} {wrong}: {'set' if self.positive is None else 'remove'} it")
        if self.pair_head is not None and self.name != "alignment":
            raise UserError(f"task.pair_head={self.pair_head}: task.name={self.name} has no pairs: remove it")
        if not self.views or len(set(self.views)) < len(self.views):
            raise UserError(f"task.views={list(self.views)}: expected one or more of full, text and image, each once")
        if self.label_smoothing == 1:
            raise UserError("task.label_smoothing=1: leaves nothing of a label: expected a number below 1")
        if isinstance(self.class_weights, tuple):
            if not all(0 < weight < math.inf for weight in self.class_weights):
                raise UserError(f"task.class_weights={list(self.class_weights)}: expected numbers above 0")
            if self.name != "classification" and len(self.class_weights) != 2:
                raise UserError(
                    f"task.class_weights={list(self.class_weights)}: task.name={self.name} has the two labels 0 and 1; "
                    "give two numbers"
                )
