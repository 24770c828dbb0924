"""The composition root of `launchers/finetune.py`: a downstream task on `recipes.training`."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from mbsd.baselines.all import FAMILIES, load_image_weights
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config import FinetuneConfig
from mbsd.data.loader import Samples
from mbsd.engine.selection import Selection
from mbsd.engine.steps import ClassificationStep
from mbsd.engine.weights import start_model
from mbsd.errors import UserError
from mbsd.recipes import training
from mbsd.tasks.all import TASKS
from mbsd.tasks.task import check_tags, check_training_table, class_weights, task_samples

LOWER_IS_BETTER = ("loss",)


def finetune(config: FinetuneConfig, ds_config: dict[str, Any]) -> None:
    """A downstream task (`launchers/finetune.py`)."""
    task = TASKS[config.task.name]
    loss = task.loss
    assert loss is not None, "TaskConfig names no task without one"

    def read(catalog: Catalog, table: Table | None, split: str) -> Samples:
        assert table is not None, "FinetuneConfig.check"
        labels = task.labels(table, config.task)
        check_training_table(task, table, labels)
        return task_samples(table, split, labels)

    def make_step(tokenizer: PreTrainedTokenizerBase, table: Table | None) -> ClassificationStep:
        assert table is not None
        check_tags(table, ("train", "validation", "test"), tokenizer, config.data)
        labels = task.labels(table, config.task)
        head = {**task.head(labels, config.task), "task": task.name}
        family = FAMILIES[config.model.architecture]
        model = start_model(task.head_class, config, tokenizer, head=head, family=family)
        if config.model.image_weights is not None:
            load_image_weights(model, config.model.image_weights)
        return ClassificationStep(model, loss, task.metrics, class_weights(table, labels, config.task))

    training(
        config,
        ds_config,
        views=config.task.views,
        table_kind=task.kind,
        masking=None,
        make_step=make_step,
        read=read,
        label_dtype=task.label_dtype,
        selection=_selection(config),
    )


def _selection(config: FinetuneConfig) -> Selection:
    """Of the settings.

    Raises:
        UserError: the validation has no such metric.
    """
    task = TASKS[config.task.name]
    known = [*LOWER_IS_BETTER, *(f"{name}_{view}" for view in config.task.views for name in task.metric_names)]
    metric = config.best.metric or f"{task.monitor}_{config.task.views[0]}"
    if metric not in known:
        raise UserError(f"best.metric={metric}: task {task.name} has {', '.join(known)}; name one of them", shared=True)
    return Selection(metric, higher_is_better=metric not in LOWER_IS_BETTER, patience=config.best.patience)
