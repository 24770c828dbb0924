"""A downstream task as a stage, so that the same loop trains it."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor

from mbsd.catalog.several import Items
from mbsd.catalog.tables import Table
from mbsd.config.run import FinetuneConfig
from mbsd.config.stages import TaskConfig
from mbsd.data.inputs import Inputs
from mbsd.data.samples import Samples
from mbsd.data.spec import Labelled, Needs
from mbsd.errors import UserError
from mbsd.metrics.board import Charts
from mbsd.model.config import BackboneConfig
from mbsd.model.heads import MbsdForClassification
from mbsd.model.load import start_model
from mbsd.stages.labelled import LabelledObjective
from mbsd.stages.stage import Stage
from mbsd.tasks.checks import check_tags, check_training_table
from mbsd.tasks.registry import TASKS
from mbsd.tasks.task import Labels, shortened, task_samples

SPLITS = ("train", "validation", "test")


def task_stage(config: FinetuneConfig) -> Stage:
    """The stage of the task that the settings name."""
    task = TASKS[config.task.name]
    loss = task.loss
    assert loss is not None, "TaskConfig names no task without one"
    if config.task.label_smoothing:
        loss = partial(loss, smoothing=config.task.label_smoothing)

    def needs(config: FinetuneConfig) -> Needs:
        return Needs(config.task.views, Labelled(task.label_dtype), table=task.kind)

    def samples(config: FinetuneConfig, catalog: Items, table: Table | None, split: str) -> Samples:
        assert table is not None, "FinetuneConfig.check"
        labels = task.labels(table, config.task)
        check_training_table(task, table, labels)
        return task_samples(table, split, labels)

    def objective(config: FinetuneConfig, inputs: Inputs) -> LabelledObjective:
        check_tags(inputs.labels, SPLITS, inputs.tokenizer, config.data)
        labels = task.labels(inputs.labels, config.task)
        head = {**task.head(labels, config.task), "task": task.name}
        model = start_model(task.head_class, config, len(inputs.tokenizer), inputs.weights, head)
        return LabelledObjective(model, loss, task.metrics, class_weights(inputs.labels, labels, config.task))

    def outline(config: FinetuneConfig, model: BackboneConfig) -> LabelledObjective:
        return LabelledObjective(MbsdForClassification(model))

    views = config.task.views
    charts = Charts(
        {
            "watch": {"held out: accuracy": (r"validation/accuracy_(full|text|image)",)},
            "modality gap": {"held out: ROC-AUC": (r"validation/roc_auc_(full|text|image)",)},
        },
        held_out=("loss", *(f"{name}_{view}" for view in views for name in task.metric_names)),
    )
    monitor = f"{task.monitor}_{views[0]}"
    return Stage(needs=needs, objective=objective, outline=outline, samples=samples, charts=charts, monitor=monitor)


def class_weights(table: Table, labels: Labels, config: TaskConfig) -> Tensor | None:
    """[C] float32: what a row of each class counts in the loss, scaled so that the training rows' mean is 1.

    Raises:
        UserError: not one weight for each class.
    """
    given = config.class_weights
    if given is None:
        return None
    of_row = labels.of[table.column("label")[table.rows("train")]]
    counts = np.bincount(of_row, minlength=len(labels.names))
    if isinstance(given, str):
        weights = np.ones(len(counts))
        present = np.flatnonzero(counts)
        weights[present] = compute_class_weight("balanced", classes=present, y=of_row)
        if given == "sqrt":
            weights = np.sqrt(weights)
    else:
        if len(given) != len(counts):
            raise UserError(
                f"task.class_weights={list(given)}: {len(given)} weights, and table {table.path} has {len(counts)} "
                f"classes ({', '.join(map(shortened, labels.names[:5]))} …); give one for each, in this order, or "
                "balanced or sqrt"
            )
        weights = np.array(given, dtype=np.float64)
    return torch.from_numpy(weights * counts.sum() / (weights * counts).sum()).float()
