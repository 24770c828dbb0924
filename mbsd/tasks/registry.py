"""Every downstream task by its name."""

from __future__ import annotations

from mbsd.tasks.alignment import ALIGNMENT
from mbsd.tasks.attributes import ATTRIBUTES
from mbsd.tasks.classification import CLASSIFICATION
from mbsd.tasks.clustering import CLUSTERING
from mbsd.tasks.sensitive import SENSITIVE
from mbsd.tasks.task import Task

TASKS: dict[str, Task] = {
    "attributes": ATTRIBUTES,
    "alignment": ALIGNMENT,
    "classification": CLASSIFICATION,
    "sensitive": SENSITIVE,
    "clustering": CLUSTERING,
}
