"""Every downstream task by its name."""

from __future__ import annotations

from mbsd.tasks.alignment import ALIGNMENT
from mbsd.tasks.attributes import ATTRIBUTES
from mbsd.tasks.classification import CLASSIFICATION
from mbsd.tasks.clustering import CLUSTERING
from mbsd.tasks.retrieval import RETRIEVAL
from mbsd.tasks.sensitive import SENSITIVE
from mbsd.tasks.task import Task
from mbsd.tasks.vector_task import VectorTask

TASKS: dict[str, Task] = {
    "attributes": ATTRIBUTES,
    "alignment": ALIGNMENT,
    "classification": CLASSIFICATION,
    "sensitive": SENSITIVE,
    "clustering": CLUSTERING,
}

# Measured on vectors. Where a name is in both, a model of the contrastive stage is measured here, any other above.
VECTOR_TASKS: dict[str, VectorTask] = {
    "retrieval": RETRIEVAL,
}
