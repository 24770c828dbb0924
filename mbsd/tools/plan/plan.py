"""Config + DeepSpeed's JSON + GPUs -> a plan: what fits, how long it takes, and which setting to change."""

from __future__ import annotations

import bisect
import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from mbsd.config.deepspeed import BatchSizes, DeepSpeedConfig, precision
from mbsd.config.run import BaseConfig, PretrainConfig
from mbsd.config.schedules import peak_learning_rate
from mbsd.errors import UserError
from mbsd.metrics.throughput import model_flops, padded_lengths, training_flops
from mbsd.tools.plan.gpus import Cluster, Gpu
from mbsd.tools.plan.measured import Shares
from mbsd.tools.plan.memory import Memory, engine_memory, whole_memory
from mbsd.tools.plan.shapes import Lengths, Shapes, num_samples, num_steps, stage_of
from mbsd.tools.plan.speed import Speed, StepWork, speed
from mbsd.tools.plan.trace import Trace

GIB = 1 << 30
TYPICAL, ASSUMED = Lengths(30, 8), Shares()
UNKNOWN_STEPS = 1_000_000  # enough for a schedule to reach its peak
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Flops:
    """FLOPs of the matrix products in one sample's forward and backward, and the number of tokens of its views.

    Attributes:
        packed: as this project computes it, without padding.
        padded: a forward for each view, padded to the longest of the micro-batch.
        released: the same with every text padded to data.max_text_tokens, as in the authors' released code.
        tokens, padded_tokens: of one sample, packed and padded.
    """

    packed: float
    padded: float
    released: float
    tokens: float
    padded_tokens: float


@dataclass(frozen=True)
class Plan:
    """What `mbsd plan` prints.

    Attributes:
        gpu, gpus, nodes, network: as in `Cluster`.
        precision: fp16, bf16 or fp32.
        stage: DeepSpeed's ZeRO stage.
        optimizer, peak_lr: its type, and the highest learning rate of the run's steps.
        parameters, trained: number of the objective's parameters, and of those that are trained.
        model: where the model's sizes were read.
        unit: what a sample is called: a pair of a title and a picture, or a sample.
        samples: of the training split; None: unknown.
        steps: optimizer steps of the run; None: unknown.
        shares: of the data sheet's peaks, with which times are computed.
        mfu: share of the GPU's peak that the packed model's matrix products use.
        largest_micro_batch: that fits and divides the batch of a GPU; 0: not even a sample fits.
        advice: what to change, the most effective first.
    """

    gpu: Gpu
    gpus: int
    nodes: int
    network: float
    precision: str
    stage: int
    optimizer: str
    peak_lr: float
    sizes: BatchSizes
    parameters: int
    trained: int
    model: str
    unit: str
    samples: int | None
    steps: int | None
    memory: Memory
    flops: Flops
    speed: Speed
    shares: Shares
    mfu: float
    largest_micro_batch: int
    advice: list[str]

    @property
    def fits(self) -> bool:
        """Whether the peak of memory fits the GPU."""
        return self.memory.total <= self.gpu.memory

    @property
    def samples_per_s(self) -> float:
        """Training samples per second of all GPUs together."""
        return self.sizes.global_batch / self.speed.step

    @property
    def days(self) -> float | None:
        """Duration of the whole run; None where its steps are unknown."""
        return self.steps * self.speed.step / 86400 if self.steps is not None else None

    @property
    def gpu_hours(self) -> float | None:
        """Hours of the whole run times GPUs; None where its steps are unknown."""
        return self.days * 24 * self.gpus if self.days is not None else None


def paper_json(config: BaseConfig, gpu: Gpu) -> dict[str, Any]:
    """The paper's settings (section 4.3) as DeepSpeed's JSON, in bf16 where the GPU supports it.

    Raises:
        UserError: the paper gives none for this config.
    """
    if not isinstance(config, PretrainConfig):
        raise UserError(
            "--deepspeed_config is missing: a plan of fine-tuning needs one, say ds_configs/h100_finetune.json"
        )
    batch = stage_of(config).paper_batch
    if batch is None:
        raise UserError(f"--deepspeed_config is missing: the paper has no batch size for stage={config.stage}")
    return {
        "train_batch_size": batch,
        ("bf16" if gpu.bf16 else "fp16"): {"enabled": True},
        "zero_optimization": {
            "stage": 2, "overlap_comm": True, "reduce_bucket_size": 50_000_000, "allgather_bucket_size": 50_000_000
        },
        "optimizer": {"type": "Lamb", "params": {"lr": 2e-4, "betas": [0.9, 0.98], "weight_decay": 0.01}},
    }  # fmt: skip


def make_plan(
    config: BaseConfig,
    ds_config: DeepSpeedConfig | None,
    cluster: Cluster,
    lengths: Lengths = TYPICAL,
    samples: int | None = None,
    shares: Shares = ASSUMED,
) -> Plan:
    """Plan a training run on a cluster.

    Args:
        config: of pre-training or fine-tuning.
        ds_config: DeepSpeed's JSON; None: `paper_json`, with the largest micro-batch that fits.
        cluster: on which it runs.
        lengths: mean lengths of titles and queries.
        samples: of the training split; None: counted in the catalogue, if that exists here.
        shares: of the data sheet's peaks that the GPU reaches.

    Raises:
        UserError: the batch sizes cannot be divided by the GPUs, or the GPU does not support the precision.
    """
    gpu, gpus = cluster.gpu, cluster.gpus
    given = ds_config is not None
    ds_config = ds_config if ds_config is not None else DeepSpeedConfig(paper_json(config, gpu))
    kind = precision(ds_config.tree)
    if kind == "bf16" and not gpu.bf16:
        raise UserError(f"bf16.enabled: a {gpu.name} has no bf16; use fp16 in DeepSpeed's JSON for it")
    shapes = Shapes(config, DTYPES[kind], lengths, gpu.capability)
    traces: dict[int, Trace] = {}

    def memory_of(micro_batch: int) -> Memory:
        if micro_batch not in traces:
            traces[micro_batch] = shapes.trace(micro_batch, per_gpu // micro_batch, gpus)
        cut = {"train_micro_batch_size_per_gpu": micro_batch, "gradient_accumulation_steps": "auto"}
        changed = DeepSpeedConfig({**ds_config.tree, **cut}, ds_config.path)
        resolved, averaged = changed.resolved(gpus, 1), bool(config.run.ema)
        engine = engine_memory(shapes.objective, resolved, gpus, shapes.rates, averaged=averaged)
        dali = config.data.decoder in ("auto", "dali")
        return whole_memory(engine, traces[micro_batch], config, changed.sizes(gpus), dali=dali)

    each = ds_config.sizes(gpus)
    per_gpu = each.micro_batch * each.accumulation
    choices = [n for n in range(1, per_gpu + 1) if per_gpu % n == 0]
    fitting = bisect.bisect_right(choices, gpu.memory, key=lambda n: memory_of(n).total)
    largest = choices[fitting - 1] if fitting else 0
    micro_batch = each.micro_batch if given else max(largest, 1)
    sizes = BatchSizes(each.global_batch, micro_batch, per_gpu // micro_batch)
    memory = memory_of(micro_batch)

    zero = ds_config.tree.get("zero_optimization") or {}
    trained = sum(p.numel() for p in shapes.objective.parameters() if p.requires_grad)
    seconds = speed(
        traces[micro_batch].kernels, cluster,
        StepWork(kind != "fp32", trained, sizes.accumulation, zero.get("stage", 0), bool(zero.get("overlap_comm"))),
        shares,
        traces[micro_batch].once,
    )  # fmt: skip
    samples = samples if samples is not None else num_samples(config)
    flops = _flops(shapes, micro_batch)
    steps = num_steps(config, samples, sizes, gpus)
    resolved = ds_config.resolved(gpus, steps or UNKNOWN_STEPS)
    plan = Plan(
        gpu=gpu, gpus=gpus, nodes=cluster.nodes, network=cluster.network, precision=kind,
        stage=zero.get("stage", 0), optimizer=resolved["optimizer"]["type"],
        peak_lr=peak_learning_rate(resolved, steps or UNKNOWN_STEPS), sizes=sizes,
        parameters=sum(p.numel() for p in shapes.objective.parameters()),
        trained=trained, model=shapes.source, samples=samples, steps=steps,
        memory=memory, flops=flops, speed=seconds, shares=shares, unit="pairs" if shapes.pairs else "samples",
        mfu=flops.packed * sizes.global_batch / gpus / seconds.step / gpu.half_flops,
        largest_micro_batch=largest, advice=[],
    )  # fmt: skip
    plan.advice.extend(_advice(plan))
    if config.batch_schedule is not None:
        plan.advice.append(
            f"contrastive.batch_schedule: memory and times are of the last batch, {sizes.global_batch}; smaller ones "
            "take less"
        )
    if not config.model.activation_checkpointing and (not plan.fits or seconds.encoding):
        lean = dataclasses.replace(config, model=dataclasses.replace(config.model, activation_checkpointing=True))
        of_lean = Shapes(lean, DTYPES[kind], lengths, gpu.capability)
        if not plan.fits:
            saved = of_lean.trace(micro_batch).saved
            plan.advice.append(
                f"model.activation_checkpointing=true keeps {saved / GIB:.2f} GiB of activations instead of "
                f"{memory.activations / GIB:.2f}, for about a third more compute"
            )
        else:
            shapes, traces = of_lean, {}
            total = memory_of(per_gpu).total
            if total <= gpu.memory:
                plan.advice.append(
                    f"model.activation_checkpointing=true with train_micro_batch_size_per_gpu={per_gpu} takes "
                    f"{total / GIB:.1f} GiB: the same extra forward, in one pass, and gradients are reduced once"
                )
    return plan


def _flops(shapes: Shapes, micro_batch: int) -> Flops:
    batch, config = shapes.batch(micro_batch), shapes.model_config
    views = batch.views
    padded = padded_lengths(views)
    patches = config.num_image_tokens
    data = shapes.config.data
    whole = {
        "full": data.max_text_tokens + patches,
        "text": data.max_text_tokens,
        "image": (data.max_query_tokens if shapes.queries else 2) + patches,
    }
    released = [whole[name] for name in views.names for _ in range(micro_batch)]
    # A forward of its own for each view patchifies the image each time that it is shown.
    shown = sum(name != "text" for name in views.names)
    return Flops(
        packed=training_flops(config, batch) / micro_batch,
        padded=model_flops(config, padded, micro_batch * shown) / micro_batch,
        released=model_flops(config, released, micro_batch * shown) / micro_batch,
        tokens=sum(views.lengths) / micro_batch,
        padded_tokens=sum(padded) / micro_batch,
    )


def _advice(plan: Plan) -> list[str]:
    """Which setting to change, the most effective first."""
    sizes, largest = plan.sizes, plan.largest_micro_batch
    per_gpu = sizes.micro_batch * sizes.accumulation
    advice = []
    if largest and largest != sizes.micro_batch and (not plan.fits or largest > sizes.micro_batch):
        reason = "does not fit" if not plan.fits else "leaves room: fewer, fuller micro-steps are quicker"
        advice.append(
            f"train_micro_batch_size_per_gpu={sizes.micro_batch} {reason}; set {largest}, the largest that fits, and "
            f"gradient_accumulation_steps={per_gpu // largest}, for the same global batch"
        )
    if not largest:
        if plan.precision == "fp32":
            advice.append("not even a micro-batch of 1 fits in float32: enable fp16 or bf16")
        if plan.stage < 2:
            advice.append(f"not even a micro-batch of 1 fits at ZeRO-{plan.stage}: set zero_optimization.stage to 2")
        advice.append("or more GPUs (ZeRO divides masters and moments by them), a smaller model or a larger GPU")
    if plan.fits and plan.precision == "fp32":
        advice.append(f"float32 runs beside the tensor cores: enable {'bf16' if plan.gpu.bf16 else 'fp16'}")
    if plan.stage == 2 and sizes.accumulation > 1 and plan.speed.exposed > 0.1 * plan.speed.step:
        advice.append(
            f"gradients are reduced after each of {sizes.accumulation} micro-steps and {plan.speed.exposed:.2f} s a "
            "step are waited for: ZeRO-1 reduces them once a step, if its memory fits"
        )
    waited = plan.speed.exposed + plan.speed.gather
    if plan.nodes > 1 and waited > 0.25 * plan.speed.step:
        advice.append(f"the network takes {waited / plan.speed.step:.0%} of the step: fewer nodes or a faster network")
    whole = "the whole batch of a GPU fits in one micro-step"
    return advice or [f"nothing: {whole if sizes.accumulation == 1 else 'no larger micro-batch fits'}"]
