"""The composition root of `launchers/finetune.py`: a downstream task on `recipes.training`."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Table
from mbsd.config.deepspeed import DeepSpeedConfig
from mbsd.config.run import FinetuneConfig
from mbsd.data.loader import Samples
from mbsd.errors import UserError
from mbsd.model.load import start_model
from mbsd.stages.stage import ClassificationStep
from mbsd.tasks.registry import TASKS
from mbsd.tasks.task import check_tags, check_training_table, class_weights, task_samples
from mbsd.training.early_stopping import EarlyStopping
from mbsd.training.setup import training
from mbsd.training.start import start_weights

LOWER_IS_BETTER = ("loss",)


def finetune(config: FinetuneConfig, ds_config: DeepSpeedConfig) -> None:
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
        model = start_model(task.head_class, config, len(tokenizer), start_weights(config), head)
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


def _selection(config: FinetuneConfig) -> EarlyStopping:
    """Of the settings.

    Raises:
        UserError: the validation has no such metric.
    """
    task = TASKS[config.task.name]
    known = [*LOWER_IS_BETTER, *(f"{name}_{view}" for view in config.task.views for name in task.metric_names)]
    metric = config.best.metric or f"{task.monitor}_{config.task.views[0]}"
    if metric not in known:
        raise UserError(f"best.metric={metric}: task {task.name} has {', '.join(known)}; name one of them", shared=True)
    return EarlyStopping(metric, higher_is_better=metric not in LOWER_IS_BETTER, patience=config.best.patience)
