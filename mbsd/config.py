"""Every setting of a run, as frozen dataclasses; `mbsd.command_line` reads them from a YAML file and dotted overrides.

Batch size, precision, ZeRO, optimizer and schedule are not here: they are DeepSpeed's JSON. Settings that contradict
each other are an error.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from mbsd.errors import UserError

AT_LEAST_ONE = {
    "run.max_steps", "run.log_every", "run.save_every", "run.validate_samples", "run.keep_last",
    "run.max_skipped_steps", "data.image_size", "data.prefetch", "data.shuffle_block", "data.shuffle_window",
    "data.token_bucket", "model.crop_size",
}  # fmt: skip
SHARES = {"data.colour_jitter", "data.max_corrupt"}
AT_LEAST_ZERO = {
    "run.validate_every", "run.keep_every", "run.timeout", "run.profile", "data.num_workers", "best.patience",
}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """Where a run lives, how long it takes and how often it speaks."""

    dir: str
    """Run folder: resolved configs, metrics, TensorBoard files and checkpoints. An unfinished run in it is resumed."""
    seed: int = 0
    epochs: float | None = None
    """Passes over the training samples; this or max_steps."""
    max_steps: int | None = None
    """Optimizer steps; this or epochs."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    validate_every: int = 500
    """Steps between two validations; one more follows the last step. 0: none."""
    validate_samples: int = 2048
    """At most this many validation samples are read."""
    save_every: int = 1000
    """Steps between two checkpoints; the last step is always saved."""
    max_skipped_steps: int = 100
    """The run stops after so many steps in a row that fp16 skipped because gradients overflowed."""
    keep_last: int = 2
    """Checkpoints that are kept."""
    keep_every: int = 0
    """Checkpoints of every so many steps are kept for ever. 0: none."""
    node_local_checkpoints: str | None = None
    """Folder on each node's own disk for the checkpoint files of its ranks, where dir/checkpoints is too slow.
    To go on, the ranks have to start on the same nodes."""
    resume: str = "auto"
    """Where dir holds no checkpoint: start from the full state of another run (its folder, or one checkpoint of it)
    instead of init_from. auto: none; dir's own checkpoints always come first."""
    profile: int = 0
    """Steps to trace with torch's profiler, after the first few, into dir/profile: for TensorBoard or Perfetto."""
    timeout: float = 1800.0
    """Seconds without any progress (a step, a validation batch, a save) after which a rank writes its stacks and ends.
    0: a run that hangs waits for ever."""
    init_from: str | None = None
    """Weights and tokenizer to start from: a run folder or a folder written by save_pretrained. Not the optimizer."""


@dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes tokens and pixels."""

    catalog: str
    """Folder written by `mbsd catalog build`."""
    table: str | None = None
    """Task table over the catalogue (Parquet): pairs for stage 2, the labels for fine-tuning."""
    tokenizer: str | None = None
    """Folder or hub name. Default: that of run.init_from, else a WordPiece vocabulary built from the catalogue."""
    image_size: int = 224
    max_text_tokens: int = 144
    """With specials; the title is cut first."""
    max_query_tokens: int = 64
    """With [CLS] and [SEP]; a longer query or tag is cut here."""
    decoder: Literal["auto", "torchvision", "dali"] = "auto"
    """auto: DALI on a GPU where it is installed, else torchvision."""
    num_workers: int = 2
    """Loader processes of each rank; 0 loads in the training process."""
    prefetch: int = 4
    """Micro-batches each worker holds ready."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Share of the image's area a training crop keeps; (1, 1): no cropping."""
    flip_probability: float = 0.5
    colour_jitter: float = 0.0
    """Training pictures' brightness, contrast and saturation change by up to this share. A colour is often what an
    attribute says, so none by default."""
    shuffle_block: int = 64
    """Neighbouring samples that an epoch keeps near each other, so that disks read on."""
    shuffle_window: int = 512
    """Blocks that are mixed with each other. A catalogue of no more than a window is shuffled as a whole."""
    token_bucket: int = 1
    """Training batches are filled up to a multiple of so many tokens, and to an image for every sample, so that
    model.compile sees few shapes; losses stay the same. 1: nothing is filled up."""
    max_corrupt: float = 0.001
    """Pictures whose bytes on disk are damaged are left out and named; the run stops where they are a larger share of
    those read. 0: at the first one."""


@dataclass(frozen=True)
class ModelConfig:
    """The network (SPEC 1 and 2). The defaults are the paper's; a backbone or init_from brings its own sizes."""

    architecture: Literal["mbsd", "bert", "vit", "vilt", "fashionbert", "kaleido"] = "mbsd"
    """mbsd, or a baseline to compare it with, which is fine-tuned and scored by the same commands (`mbsd.baselines`).
    bert reads the view text alone, vit the view image."""
    backbone: str | None = None
    """A BERT checkpoint (local folder or hub name, say bert-base-chinese) to start from; of vit and vilt a ViT."""
    image_weights: str | None = None
    """Of fashionbert and kaleido: a local file with torchvision's ResNet-50 weights (.pth or .safetensors)."""
    crop_size: int = 224
    """Of fashionbert and kaleido: pixels of a crop's side as ResNet-50 sees it."""
    vocab_size: int = 21128
    """The largest vocabulary built from a catalogue; the model takes the tokenizer's real size."""
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    dropout: float = 0.1
    patchify: Literal["conv", "linear"] = "conv"
    """conv: four non-overlapping convolutions (Fig. 3); linear: one (Table 6, row 5)."""
    patchify_strides: tuple[int, ...] = (4, 2, 2, 2)
    patchify_channels: tuple[int, ...] = (64, 192, 384)
    """Channels between the convolutions; the last gives hidden_size."""
    image_cls: bool = False
    """A learned image-[CLS] before the patches, as the released code has."""
    representation: Literal["pooled", "cls"] = "pooled"
    """h: dense + tanh of [CLS], or [CLS] itself."""
    initializer_range: float = 0.02
    """Deviation of weights and word vectors at the start; about 1 / sqrt(hidden_size) suits a narrow model."""
    position_range: float = 0.02
    """The same of positions, token types and modality vectors. BERT draws them as wide as words, and a small model then
    takes thousands of steps to tell which word stands where from which word it is."""
    match_head: Literal["shared", "per_view"] = "shared"
    """One linear layer for the three views' logits (the paper's words in 3.6), or one each."""
    activation_checkpointing: bool = False
    """Keep each encoder layer's input alone and compute the layer again in the backward: less memory, about a third
    more compute, the same numbers."""
    compile: bool = False
    """torch.compile of the encoder layers' parts around attention; meant for GPUs, with data.token_bucket, so that it
    sees few sizes."""

    def check(self) -> None:
        """Raise UserError where a setting is set that this architecture does not read."""
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        for name in _unread(self.architecture):
            value = getattr(self, name)
            if value != defaults[name]:
                shown = list(value) if isinstance(value, tuple) else value
                raise UserError(
                    f"model.{name}={shown}: model.architecture={self.architecture} does not read it; remove it"
                )


@dataclass(frozen=True)
class MaskingConfig:
    """Stage 1 (Eq. 1, 2)."""

    mlm_probability: float = 0.15
    mpm_probability: float = 0.5
    mpm_corruption: Literal["replace", "bert"] = "replace"
    """replace: every masked patch becomes the mask vector; bert: 80% mask, 10% another patch, 10% kept."""


@dataclass(frozen=True)
class SdmiConfig:
    """Stage 2 (Eq. 3-11) and its switches for Table 6."""

    variant: Literal["paper", "released"] = "paper"
    unimodal_losses: bool = True
    """L_QT and L_QV; off together with distillation: row 6."""
    distillation: bool = True
    """L_KL and L_RS; off alone: row 7."""
    weight: Literal["adaptive"] | float = "adaptive"
    """w_i of Eq. 9, or a constant wherever the strong view is right (row 8)."""


@dataclass(frozen=True)
class TaskConfig:
    """A downstream task that is trained (SPEC 7). Clustering is not: `launchers/evaluate.py` does it with any model."""

    name: Literal["attributes", "alignment", "classification", "sensitive"] = "attributes"
    """attributes: does the tag hold for the item; alignment: are two items one product; classification: into the
    table's categories; sensitive: is the item of the category `positive`."""
    views: tuple[Literal["full", "text", "image"], ...] = ("full",)
    """Views a sample is trained on, all in one forward; the losses are averaged."""
    class_weights: Literal["balanced"] | tuple[float, ...] | None = None
    """What a row of each class counts in the loss: balanced: all classes the same together; or one number a class, in
    the order of the labels (sensitive: others, positive). Scaled so that the training rows' mean is 1."""
    positive: str | None = None
    """Of sensitive, which needs it: the category that is to be found; all others are its opposite."""
    pair_head: Literal["compare", "concat"] | None = None
    """Of alignment: a linear layer on [h_s; h_t; |h_s - h_t|; h_s * h_t] (the default), or on [h_s; h_t] alone as the
    paper has it: a sum of what each item says by itself, which cannot tell whether two items are alike."""

    def check(self) -> None:
        """Raise UserError where a setting belongs to another task, or the task lacks one."""
        if (self.name == "sensitive") != (self.positive is not None):
            wrong = "needs task.positive, the category to find" if self.positive is None else "reads no task.positive"
            raise UserError(f"task.name={self.name} {wrong}: {'set' if self.positive is None else 'remove'} it")
        if self.pair_head is not None and self.name != "alignment":
            raise UserError(f"task.pair_head={self.pair_head}: task.name={self.name} has no pairs: remove it")
        if not self.views or len(set(self.views)) < len(self.views):
            raise UserError(f"task.views={list(self.views)}: expected one or more of full, text and image, each once")
        if isinstance(self.class_weights, tuple):
            if not all(0 < weight < math.inf for weight in self.class_weights):
                raise UserError(f"task.class_weights={list(self.class_weights)}: expected numbers above 0")
            if self.name != "classification" and len(self.class_weights) != 2:
                raise UserError(
                    f"task.class_weights={list(self.class_weights)}: task.name={self.name} has the two labels 0 and 1; "
                    "give two numbers"
                )


@dataclass(frozen=True)
class BestConfig:
    """Which checkpoint of a fine-tuning run is its result, and when there is nothing more to wait for."""

    metric: str | None = None
    """A validation metric as metrics.jsonl names it behind `validation/`, say roc_auc_full or loss. Default: the
    task's own, of its first view. The checkpoint of its best value is kept, and is what evaluate, embed, export and
    init_from read of the run."""
    patience: int = 0
    """Training stops after so many validations in a row without a better value. 0: never."""


@dataclass(frozen=True)
class BaseConfig:
    """What every training run has."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)

    def check(self) -> None:
        """Raise UserError where two settings contradict each other."""
        run, data = self.run, self.data
        self.model.check()
        if run.init_from is not None and self.model.image_weights is not None:
            raise UserError(
                f"run.init_from={run.init_from} and model.image_weights={self.model.image_weights} both name weights "
                "to start from; remove one"
            )
        if (run.epochs is None) == (run.max_steps is None):
            given = "both are set" if run.epochs is not None else "neither is set"
            raise UserError(f"run.epochs and run.max_steps: {given}; set exactly one of them")
        if run.init_from is not None and self.model.backbone is not None:
            raise UserError(
                f"run.init_from={run.init_from} and model.backbone={self.model.backbone} both name weights to start "
                "from; remove one"
            )
        if not 4 <= data.max_query_tokens <= data.max_text_tokens:
            raise UserError(
                f"data.max_query_tokens={data.max_query_tokens} must be between 4 and "
                f"data.max_text_tokens={data.max_text_tokens}"
            )
        low, high = data.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"data.crop_scale={[low, high]}: expected 0 < low <= high <= 1")
        for name, value in _numbers(self):
            if (name.endswith("probability") or name in SHARES) and not 0 <= value <= 1:
                raise UserError(f"{name}={value}: expected a number between 0 and 1")
            if name in AT_LEAST_ONE and value < 1:
                raise UserError(f"{name}={value}: expected 1 or more")
            if name in AT_LEAST_ZERO and value < 0:
                raise UserError(f"{name}={value}: expected 0 or more")
        if run.epochs is not None and run.epochs <= 0:
            raise UserError(f"run.epochs={run.epochs}: expected more than 0")


@dataclass(frozen=True)
class PretrainConfig(BaseConfig):
    """`launchers/pretrain.py`."""

    stage: Literal["masked", "matching"] = "masked"
    """masked: stage 1, over the catalogue; matching: stage 2, over a pair table."""
    masking: MaskingConfig | None = None
    """Stage 1 only."""
    sdmi: SdmiConfig | None = None
    """Stage 2 only."""

    def check(self) -> None:
        """See BaseConfig; and each stage has its own sections."""
        super().check()
        if self.model.architecture != "mbsd":
            raise UserError(
                f"model.architecture={self.model.architecture}: pre-training is MBSD's own; a baseline starts from "
                "model.backbone in launchers/finetune.py"
            )
        if self.stage == "masked" and (self.sdmi is not None or self.data.table is not None):
            extra = "sdmi" if self.sdmi is not None else "data.table"
            raise UserError(f"stage=masked reads neither sdmi nor data.table, but {extra} is set: remove it")
        if self.stage == "matching":
            if self.masking is not None:
                raise UserError("stage=matching does not read masking, but it is set: remove it")
            if self.data.table is None:
                raise UserError("stage=matching needs data.table, the pair table that `mbsd pairs mine` writes")


@dataclass(frozen=True)
class FinetuneConfig(BaseConfig):
    """`launchers/finetune.py`."""

    task: TaskConfig = field(default_factory=TaskConfig)
    best: BestConfig = field(default_factory=BestConfig)

    def check(self) -> None:
        """See BaseConfig; and a task needs its labels, patience something to wait for."""
        super().check()
        if self.data.table is None:
            raise UserError("data.table is not set: fine-tuning needs a task table (`mbsd tables build` or `derive`)")
        self.task.check()
        if self.best.patience and not self.run.validate_every:
            raise UserError(
                f"best.patience={self.best.patience} counts validations, and run.validate_every=0 says there are none "
                "before the last step: set run.validate_every, or leave best.patience out"
            )


def _unread(architecture: str) -> tuple[str, ...]:
    """Settings of ModelConfig that mean nothing to an architecture."""
    of_crops = ("image_weights", "crop_size")
    if architecture == "mbsd":
        return of_crops
    of_mbsd = ("patchify", "patchify_channels", "image_cls", "match_head", "compile", "activation_checkpointing")
    if architecture in ("vit", "vilt"):  # their patches are as large as MBSD's
        return (*of_mbsd, *of_crops)
    return (*of_mbsd, "patchify_strides", *(() if architecture in ("fashionbert", "kaleido") else of_crops))


def to_yaml(config: Any) -> str:
    """The resolved config as YAML that `--config` reads back."""
    return str(yaml.safe_dump(json.loads(json.dumps(_without_none(dataclasses.asdict(config)))), sort_keys=False))


def _numbers(tree: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    for f in dataclasses.fields(tree):
        value = getattr(tree, f.name)
        if dataclasses.is_dataclass(value):
            yield from _numbers(value, f"{prefix}{f.name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{f.name}", value


def _without_none(tree: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_none(v) if isinstance(v, dict) else v for k, v in tree.items() if v is not None}
