"""Every downstream task by its name."""

from __future__ import annotations

from mbsd.tasks.alignment import ALIGNMENT
from mbsd.tasks.attributes import ATTRIBUTES
from mbsd.tasks.classification import CLASSIFICATION
from mbsd.tasks.cluster_vectors import CLUSTER_VECTORS
from mbsd.tasks.clustering import CLUSTERING
from mbsd.tasks.found_by_name import FOUND_BY_NAME
from mbsd.tasks.matching import MATCHING
from mbsd.tasks.neighbours import NEIGHBOURS
from mbsd.tasks.probe import PROBE
from mbsd.tasks.retrieval import RETRIEVAL
from mbsd.tasks.sensitive import SENSITIVE
from mbsd.tasks.tags import TAGS
from mbsd.tasks.task import Task
from mbsd.tasks.vector_task import VectorTask
from mbsd.tasks.zero_shot import ZERO_SHOT

TASKS: dict[str, Task] = {
    "attributes": ATTRIBUTES,
    "alignment": ALIGNMENT,
    "classification": CLASSIFICATION,
    "sensitive": SENSITIVE,
    "clustering": CLUSTERING,
}

# Measured on vectors. Where a name is in both, a model of the contrastive stage is measured here, any other above.
VECTOR_TASKS: dict[str, VectorTask] = {
    task.name: task
    for task in (RETRIEVAL, ZERO_SHOT, NEIGHBOURS, PROBE, CLUSTER_VECTORS, MATCHING, TAGS, FOUND_BY_NAME)
}
