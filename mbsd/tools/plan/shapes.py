"""A config -> the model it trains, as shapes alone, and micro-batches of typical lengths to send through it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from mbsd.batch import Batch, CrossModal, Masks, Views
from mbsd.catalog.tables import Table
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.batch_plan import plan_batches
from mbsd.config.deepspeed import BatchSizes
from mbsd.config.run import BaseConfig, FinetuneConfig, PretrainConfig
from mbsd.data.inputs import catalog_samples, open_items
from mbsd.data.samples import TableSamples
from mbsd.data.spec import BatchSpec, Masked, SameProduct
from mbsd.data.views import TextTokens, pack
from mbsd.errors import UserError
from mbsd.model.attention import meta_device_as
from mbsd.model.config import BackboneConfig
from mbsd.model.execution import checkpoint_layers
from mbsd.model.families import FAMILIES
from mbsd.model.load import saved_config
from mbsd.stages.parts import part_rates
from mbsd.stages.registry import find_stage
from mbsd.stages.stage import Objective, Stage
from mbsd.tasks.stage import task_stage
from mbsd.tools.plan.trace import Once, Trace, trace_once, trace_step

PLANNED = ("mbsd", "two_tower")
SPREAD = 0.25  # titles and queries are this much shorter to this much longer than their mean


@dataclass(frozen=True)
class Lengths:
    """Mean words of titles and queries (their tokens without specials)."""

    title: int
    query: int


def stage_of(config: BaseConfig) -> Stage:
    """The stage that a launcher would train.

    Raises:
        UserError: `stage` names none.
    """
    if isinstance(config, FinetuneConfig):
        return task_stage(config)
    assert isinstance(config, PretrainConfig)
    return find_stage(config.stage)


class Shapes:
    """The training step of a config on the meta device, as a GPU would run it.

    Args:
        capability: CUDA's compute capability of the GPU.

    Attributes:
        objective: of the stage, in the run's precision; what `optim` freezes is frozen.
        rates: of its parts.
        needs: of the stage.
        source: where the model's sizes were read.
    """

    def __init__(self, config: BaseConfig, dtype: torch.dtype, lengths: Lengths, capability: tuple[int, int]) -> None:
        self.config, self.lengths = config, lengths
        self.model_config, self.source = _model_config(config)
        self.capability = capability
        stage = stage_of(config)
        self.needs = stage.needs(config)
        if self.masked and len(self.needs.views) > 1 and not self._spec.cross_modal:
            raise UserError("itm.negatives=hard: a plan is of random negatives alone; remove it")
        with torch.device("meta"):
            objective = stage.outline(config, self.model_config)
        if config.model.activation_checkpointing:
            checkpoint_layers(objective.model)
        self.objective = objective.to(dtype)
        self.rates = part_rates(self.objective, config.optim)

    @property
    def views(self) -> tuple[str, ...]:
        """That a training sample is shown in."""
        return self.needs.views

    @property
    def masked(self) -> bool:
        """Whether words and patches are masked."""
        return isinstance(self.needs.targets, Masked)

    @property
    def pairs(self) -> bool:
        """Whether a sample is a pair of a title and a picture, of which some are the same product."""
        return isinstance(self.needs.targets, SameProduct)

    @property
    def queries(self) -> bool:
        """Whether a sample has a query."""
        return not (self.masked or self.pairs)

    def batch(self, micro_batch: int) -> Batch:
        """A micro-batch of typical lengths, every sample with an image; on the CPU, its pixels on the meta device."""
        config = self.model_config
        patches = config.num_image_tokens
        texts = [self._text(n, micro_batch) for n in range(micro_batch)]
        ids_N, positions_N, types_N, views = pack(texts, [True] * micro_batch, self.views, patches)
        side = config.image_size
        return Batch(
            input_ids_N=ids_N,
            position_ids_N=positions_N,
            token_type_ids_N=types_N,
            images=torch.empty(micro_batch, 3, side, side, dtype=torch.uint8, device="meta"),
            views=views,
            items_B=torch.zeros(micro_batch, dtype=torch.int64),
            labels_B=torch.zeros(micro_batch) if self.queries or self._spec.mismatched else None,
            masks=self._masks(views, micro_batch) if self.masked else None,
            keys_BK=self._keys(micro_batch),
            has_text=None if self._spec.same_product is None else torch.ones(micro_batch, dtype=torch.bool),
            cross_modal=_cross_modal(texts) if self._spec.cross_modal else None,
        )

    @property
    def _spec(self) -> BatchSpec:
        """Of training batches."""
        return BatchSpec(self.needs.views, self.needs.targets, self.model_config.num_patches, train=True)

    def trace(self, micro_batch: int, micro_steps: int = 1, num_ranks: int = 1) -> Trace:
        """Of one forward and backward of a micro-batch, laid out as a GPU lays it out; and of what a step of so many
        micro-steps on so many ranks does once."""
        batch = self.batch(micro_batch).to("meta")
        views = [batch.views.alone(view).lengths for view in range(len(batch.views.names))]
        lengths = (*views, batch.views.lengths)  # the sequences of a view alone, where each has a tower
        self.objective.train()
        with meta_device_as(self.capability):
            whole, ledger = trace_once(lambda: self.objective.whole_batch(batch, micro_steps, num_ranks))
            if whole is None:
                return trace_step(self.objective, partial(_loss, self.objective, batch), *lengths)
            twice = whole.encodes_first and micro_steps > 1
            encoding = trace_once(lambda: self.objective.model(batch), *lengths)[1].kernels if twice else []
            once = Once(ledger.live, ledger.peak, ledger.kernels, encoding, whole.exchanged)
            run = partial(_loss, self.objective, batch, whole.contexts[0])
            trace = trace_step(self.objective, run, *lengths, counted=ledger)
        return dataclasses.replace(trace, once=once)

    def _text(self, n: int, of: int) -> TextTokens:
        """The n-th of evenly spread lengths, cut as the loader cuts them."""
        data = self.config.data
        factor = 1 + SPREAD * (2 * n / max(of - 1, 1) - 1) if of > 1 else 1.0
        title, query = round(self.lengths.title * factor), 0
        if self.queries:
            query = min(round(self.lengths.query * factor) + 2, data.max_query_tokens)
        length = min((query or 1) + title + 1, data.max_text_tokens)
        types = np.zeros(length, dtype=np.int64)
        types[query or length :] = 1
        return TextTokens(np.zeros(length, dtype=np.int64), types, query)

    def _keys(self, micro_batch: int) -> Tensor | None:
        same = self._spec.same_product
        return None if same is None else torch.zeros(micro_batch, len(same.same), dtype=torch.int64)

    def _masks(self, views: Views, micro_batch: int) -> Masks:
        """Words and patches of the samples that are shown their own picture; every sample shows both."""
        assert isinstance(self.needs.targets, Masked)
        masking, config = self.needs.targets.masking, self.model_config
        patches, matched = micro_batch * config.num_patches, 1 - self.needs.targets.mismatched
        words = sum(views.alone(0).lengths) - micro_batch * (config.num_image_tokens + 2)
        chosen = round(masking.mlm_probability * words * matched)
        hidden = round(masking.mpm_probability * patches * matched) if self.needs.targets.patches else 0
        index_K, index_Q = (torch.zeros(n, dtype=torch.int64) for n in (chosen, hidden))
        source = torch.zeros(patches, dtype=torch.int64) if hidden else None
        return Masks(index_K, index_K.clone(), source, index_Q, index_Q.clone())


def _cross_modal(texts: Sequence[TextTokens]) -> CrossModal:
    """Of samples that all show a title, of words that are all different, and a picture."""
    words = sum(len(text.input_ids) - 2 for text in texts)
    none_U, none_B = torch.zeros(words, dtype=torch.int64), torch.zeros(len(texts), dtype=torch.int64)
    return CrossModal(none_U, none_U.clone(), torch.ones(words), none_B, torch.ones(len(texts)), len(texts))


def num_samples(config: BaseConfig) -> int | None:
    """Training samples of a config whose catalogue (and table) are there; None where they are not.

    Raises:
        UserError: what is there cannot be read.
    """
    config.data.check()
    if not all(Path(path).exists() for path in config.data.catalog_paths):
        return None
    catalog = open_items(config.data)
    if config.data.table is None:
        if not all(Path(path).exists() for path in config.data.held_out):
            return None
        return len(catalog_samples(config.data, catalog, "train"))
    if not Path(config.data.table).exists():
        return None
    return len(TableSamples(Table(config.data.table, catalog), "train"))


def num_steps(config: BaseConfig, samples: int | None, sizes: BatchSizes, gpus: int) -> int | None:
    """Optimizer steps of the run; None where its epochs are of unknown length.

    Raises:
        UserError: a schedule of batches that does not fit the GPUs.
    """
    steps, seen = config.run.max_steps, None
    if steps is None:
        if samples is None:
            return None
        seen = (config.run.epochs or 0) * samples
    batches = plan_batches(config.batch_schedule, sizes, gpus, samples=seen, steps=steps)
    return steps or max(1, batches.steps_for(seen or 0))


def _loss(objective: Objective, batch: Batch, context: Any = None) -> Tensor:
    loss: Tensor = objective(batch, context)["loss"]
    return loss


def _model_config(config: BaseConfig) -> tuple[BackboneConfig, str]:
    """Sizes of run.init_from or model.backbone where they are folders here, else those of the YAML."""
    settings = config.model
    if settings.architecture not in PLANNED:
        raise UserError(
            f"model.architecture={settings.architecture}: a plan is of {' and '.join(PLANNED)} alone; remove it"
        )
    family = FAMILIES[settings.architecture]
    fresh = family.fresh(settings, config.data, -(-settings.vocab_size // 8) * 8, kind=family.config)
    start, backbone = config.run.init_from, settings.backbone
    if start is not None and Path(start).exists():
        saved = saved_config(weights_folder(start))
        saved.hidden_dropout_prob = saved.attention_probs_dropout_prob = settings.dropout
        return saved, f"run.init_from={start}"
    if backbone is not None and Path(backbone).exists():
        bert = AutoConfig.from_pretrained(backbone).to_dict()
        keys = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        found = type(fresh).from_dict({**fresh.to_dict(), **{key: bert[key] for key in keys}})
        return found, f"backbone {backbone}"
    named = start or backbone
    return fresh, f"the YAML's model section ({named} is not a folder here)" if named else "the YAML's model section"
