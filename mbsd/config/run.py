"""Settings: a training run. DeepSpeed's JSON has batch size, precision, ZeRO, optimizer and schedule."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.paths import PathText
from mbsd.config.ranges import at_least, check_ranges, share
from mbsd.config.stages import (
    ContrastiveConfig,
    FashionBertTasks,
    GenerativeConfig,
    ItmConfig,
    KaleidoTasks,
    MaskingConfig,
    SdmiConfig,
    TaskConfig,
)
from mbsd.errors import UserError

# Sections of the settings and the stages that read them. What else a stage needs it checks itself (`mbsd.stages`).
READ_BY = {
    "masking": ("masked", "vilt"),
    "itm": ("vilt",),
    "fashionbert": ("fashionbert",),
    "kaleido": ("kaleido",),
    "contrastive": ("contrastive",),
    "best": ("contrastive",),
    "sdmi": ("matching",),
    "generative": ("generative",),
}
BUILT_IN = ("masked", "contrastive", "matching", "vilt", "fashionbert", "kaleido", "generative")


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, how long it takes and how often it logs."""

    dir: PathText
    """Run folder: resolved configs, metrics, TensorBoard files and checkpoints. An unfinished run in it is resumed."""
    seed: int = 0
    """Of the samples' order, crops, flips, masks, dropout and new weights."""
    epochs: float | None = None
    """Passes over the training samples; this or max_steps."""
    max_steps: int | None = at_least(1, default=None)
    """Optimizer steps; this or epochs."""
    log_every: int = at_least(1, default=10)
    """Optimizer steps between two lines of metrics.jsonl."""
    validate_every: int = at_least(0, default=500)
    """Steps between two validations; one more follows the last step. 0: none."""
    validate_samples: int = at_least(1, default=2048)
    """At most this many validation samples are read."""
    save_every: int = at_least(1, default=1000)
    """Steps between two checkpoints; the last step is always saved."""
    max_skipped_steps: int = at_least(1, default=100)
    """The run stops when fp16 has skipped this many steps in a row because gradients overflowed."""
    keep_last: int = at_least(1, default=2)
    """How many of the newest checkpoints are kept."""
    keep_every: int = at_least(0, default=0)
    """Checkpoints whose step is a multiple of this are never deleted. 0: none."""
    node_local_checkpoints: PathText | None = None
    """Folder on each node's own disk for the checkpoint files of its ranks, where dir/checkpoints is too slow.
    To resume, the ranks have to start on the same nodes."""
    mirror: str | None = None
    """URL of a folder in object storage (s3://…, gs://…) or elsewhere (file://…) of this run alone, to which each
    checkpoint is copied behind the training. Where its newest complete one is newer than what dir has, as on an empty
    disk, the run resumes from it; keep_last and keep_every hold there too. A copy that fails is a warning, counted as
    mirror_failures."""
    mirror_wait: float = at_least(0, default=600.0)
    """Seconds that the end of a run waits for the last copies to the mirror."""
    resume: PathText = "auto"
    """Where dir holds no checkpoint: start from the full state of another run (its folder, or one checkpoint of it)
    instead of init_from. auto: none; dir's own checkpoints always come first."""
    extend: bool = False
    """Train a finished run for longer: with it, a folder that is finished goes on where max_steps or epochs asks for
    more. A schedule is laid out anew over all steps, so that the learning rate can jump; the start prints from what to
    what."""
    profile: int = at_least(0, default=0)
    """Steps to trace with torch's profiler, after the first few, into dir/profile: for TensorBoard or Perfetto."""
    deterministic: bool = False
    """On a GPU: take the slower kernels that give the same bits each time, so that a resumed run is bitwise the one
    that was never stopped, on the same kind and number of GPUs; what has no such kernel is refused by name. On a CPU
    they are taken anyway."""
    timeout: float = at_least(0, default=1800.0)
    """Seconds without any progress (a step, a validation batch, a save) after which a rank writes its stacks and ends.
    0: a run that hangs waits for ever."""
    ema: float = share(default=0.0)
    """Decay of a moving average of the weights, say 0.999: it is what is validated, saved and read by evaluate, embed,
    export and init_from, and training goes on with the raw weights. In its first steps (1 + n) / (10 + n), if that is
    less. 0: none."""
    init_from: PathText | None = None
    """Weights and tokenizer to start from: a run folder or a folder written by save_pretrained. Not the optimizer."""


@dataclass(frozen=True)
class OptimConfig:
    """Learning rates of parts of the model, as multiples of the rate that DeepSpeed's JSON and its schedule give a step
    (`lr` in metrics.jsonl). With 0 a part is frozen: it gets no gradient, no update and no weight decay."""

    image: float = at_least(0, default=1.0)
    """Of what image tokens alone go through before the trunk: MBSD's patchify network and the positions of its patches,
    a baseline's patch projection or ResNet."""
    backbone: float = at_least(0, default=1.0)
    """Of the words' embeddings and the encoder: what a published BERT gives weights to."""
    head: float = at_least(0, default=1.0)
    """Of everything else: the stage's or task's own layers, and the pooler before them."""

    def check(self) -> None:
        """Raise UserError where nothing would be trained."""
        if not (self.image or self.backbone or self.head):
            raise UserError("optim.image, optim.backbone and optim.head are all 0: nothing would be trained; raise one")


LAST = "last"  # of best.metric


@dataclass(frozen=True)
class BestConfig:
    """Which checkpoint of a fine-tuning or contrastive run is its result, and when training stops early."""

    metric: str | None = None
    """A validation metric by its name after `validation/` in metrics.jsonl, such as roc_auc_full or loss. Default: the
    task's own, of its first view; of the contrastive stage r1_mean. The checkpoint of its best value is kept, and is
    what evaluate, embed, export and init_from read of the run. `last`: none is the best, and they read the newest."""
    patience: int = at_least(0, default=0)
    """Training stops after this many validations in a row without a better value. 0: never."""

    def check(self, run: RunConfig) -> None:
        """Raise UserError where patience has nothing to wait for."""
        if self.patience and not run.validate_every:
            raise UserError(
                f"best.patience={self.patience} counts validations, and run.validate_every=0 says there are none "
                "before the last step: set run.validate_every, or leave best.patience out"
            )
        if self.patience and self.metric == LAST:
            raise UserError(
                f"best.patience={self.patience} waits for a better validation, and best.metric={LAST} compares none: "
                "name a metric, or leave best.patience out"
            )


@dataclass(frozen=True)
class BaseConfig:
    """What every training run has."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def batch_schedule(self) -> tuple[tuple[float, int], ...] | None:
        """Global batches by share of the run's samples (`mbsd.config.batch_plan`); None: all steps have one."""
        return None

    def check(self) -> None:
        """Raise UserError where two settings contradict each other."""
        run, data = self.run, self.data
        data.check()
        self.model.check()
        self.optim.check()
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
        if run.mirror is not None and "://" not in run.mirror:
            raise UserError(
                f"run.mirror={run.mirror}: expected a URL such as s3://bucket/folder, gs://bucket/folder or "
                f"file://{os.path.abspath(run.mirror)}"
            )
        if not 4 <= data.max_query_tokens <= data.max_text_tokens:
            raise UserError(
                f"data.max_query_tokens={data.max_query_tokens} must be between 4 and "
                f"data.max_text_tokens={data.max_text_tokens}"
            )
        low, high = data.crop_scale
        if not 0 < low <= high <= 1:
            raise UserError(f"data.crop_scale={[low, high]}: expected 0 < low <= high <= 1")
        if data.share_images and data.table is None:
            raise UserError("data.share_images=true: only rows of a task table ask about the same item; remove it")
        if data.share_images and data.token_bucket > 1:
            raise UserError(
                f"data.share_images=true and data.token_bucket={data.token_bucket}: batches would be filled up to a "
                "picture for every sample; remove one"
            )
        check_ranges(self)
        if run.ema == 1:
            raise UserError("run.ema=1: the average would stay at the first step's weights: expected a number below 1")
        if run.epochs is not None and run.epochs <= 0:
            raise UserError(f"run.epochs={run.epochs}: expected more than 0")


@dataclass(frozen=True)
class PretrainConfig(BaseConfig):
    """`launchers/pretrain.py`."""

    stage: str = "masked"
    """masked: stage 1, over the catalogue; contrastive: titles against pictures, over the catalogue; matching: stage 2,
    over a pair table; vilt: masked words and image-text matching, over the catalogue; fashionbert, kaleido: what those
    models were pre-trained by, over the catalogue; generative: titles written from pictures, over the catalogue
    (`mbsd.stages.registry`)."""
    masking: MaskingConfig | None = None
    """Stage 1; of vilt what is of words."""
    itm: ItmConfig | None = None
    """Of vilt only."""
    contrastive: ContrastiveConfig | None = None
    """The contrastive stage only."""
    best: BestConfig | None = None
    """The contrastive stage only."""
    sdmi: SdmiConfig | None = None
    """Stage 2 only."""
    generative: GenerativeConfig | None = None
    """The generative stage only."""
    fashionbert: FashionBertTasks | None = None
    """The stage fashionbert only."""
    kaleido: KaleidoTasks | None = None
    """The stage kaleido only."""

    @property
    def batch_schedule(self) -> tuple[tuple[float, int], ...] | None:
        """Of the contrastive stage."""
        return self.contrastive.batch_schedule if self.contrastive is not None else None

    def check(self) -> None:
        """See BaseConfig; and each stage has its own sections."""
        super().check()
        for name, stages in READ_BY.items():
            if self.stage in BUILT_IN and self.stage not in stages and getattr(self, name) is not None:
                raise UserError(f"stage={self.stage} does not read {name}, but it is set: remove it")
        if self.stage in BUILT_IN and self.stage != "matching" and self.data.table is not None:
            raise UserError(f"stage={self.stage} does not read data.table, but it is set: remove it")
        for section in (self.contrastive, self.fashionbert, self.kaleido):
            if section is not None:
                section.check()
        if self.best is not None:
            self.best.check(self.run)
        if self.stage == "matching" and self.data.table is None:
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
        self.best.check(self.run)
