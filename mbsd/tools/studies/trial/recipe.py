"""The recipe of a small model by the size of its data, the machine and the minutes: the one place of its numbers.

`recipe` says with which settings a run trains; how many steps it gets is `trial.plan`'s arithmetic, from the shares
here and speeds that are measured. What is known of single numbers is told in docs/recipes.md; not all were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["stage1", "classification", "attributes"]
Precision = Literal["fp32", "bf16"]

# Of the time that a chain of runs (stage 1, then one fine-tuning a task) may train, by the kind of run. Without stage 1
# the others share its part. 0: the run is left out.
SHARES: dict[Kind, float] = {"stage1": 0.08, "classification": 0.4, "attributes": 0.52}
# Passes over the training rows, of which a small shop does not get more, whatever its budget. Of 3,000 products 100 of
# categories taught more than 40 (docs/recipes.md); more were not tried.
MOST_EPOCHS: dict[Kind, float] = {"stage1": 60, "classification": 100, "attributes": 20}
# Of the budget: starts that take longer than measured, and the tables at the end.
RESERVE = 0.05
# Of the budget, however long tables and floors of a large catalogue took: a model that is not trained says nothing.
LEAST_TRAINING = 0.5
# A run with a share s of the labels gets s ** this of the steps: fewer labels are learnt in fewer steps.
LABELS_POWER = 0.25

# Core-minutes that a chain of runs has, from which on a model is this large: layers, width, heads, intermediate size.
SIZES: tuple[tuple[float, tuple[int, int, int, int]], ...] = (
    (0, (2, 128, 4, 384)),
    (15, (4, 128, 4, 384)),
    (600, (6, 256, 8, 768)),
)
PATCHES: dict[str, Any] = {
    "model.patchify": "overlap", "model.patchify_strides": [2, 2, 2, 2], "model.patchify_channels": [32, 64, 128],
}  # fmt: skip
# Narrower than words: beside wide positions a model takes longer to compare a tag with an item (docs/recipes.md).
POSITION_RANGE = 0.02
DATA: dict[str, Any] = {
    "data.image_size": 64, "data.crop_scale": [0.8, 1.0], "data.flip_probability": 0.5, "data.num_workers": 1,
}  # fmt: skip
TEXT_MODEL_HEAD_RANGE = 0.02  # BERT's own
# Of categories. Each picture is seen some twenty times: a higher rate for the stem, more weight decay and softer labels
# make it tell more of them; smaller crops made it tell fewer.
CLASSIFICATION: dict[str, Any] = {
    "optim.image": 2.0, "task.label_smoothing": 0.1, "data.crop_scale": [0.9, 1.0],
}  # fmt: skip
# YAML that a kind of run starts from, by its name in launchers/configs: it says the same as the recipe for 18,000 items
# and an hour, for whoever starts the runs by hand. And the JSON of DeepSpeed of all, by its name in ds_configs behind
# cpu_ or cpu_bf16_.
CONFIGS: dict[Kind, str] = {
    "stage1": "small_stage1", "classification": "small_classification", "attributes": "small_attributes",
}  # fmt: skip
DEEPSPEED = "finetune"
# Updates count: of 18,000 items batches of 32 learned more categories than larger ones in the same time. A yes/no
# answer teaches less than a category: at batches of 32 and 7e-4 attributes stay at chance.
BATCH: dict[Kind, int] = {"stage1": 32, "classification": 32, "attributes": 128}
LEARNING_RATE: dict[Kind, float] = {"stage1": 7e-4, "classification": 7e-4, "attributes": 3e-4}
WEIGHT_DECAY: dict[Kind, float] = {"stage1": 0.05, "classification": 0.2, "attributes": 0.05}
WORD_DROPOUT = 0.1
# Of a batch of attributes, so many runs of rows that are neighbours in the table, an item's tags among them.
BLOCKS = 16


@dataclass(frozen=True)
class CatalogFacts:
    """What a recipe needs to know of a shop.

    Attributes:
        items: of the catalogue.
        categories: that the table of categories tells apart.
        rows: training rows of each kind of run: items, items with a category, tags.
        test_rows: rows that each is scored on.
    """

    items: int
    categories: int
    rows: Mapping[str, int]
    test_rows: Mapping[str, int]


@dataclass(frozen=True)
class Machine:
    """What the runs may use.

    Attributes:
        cores: in all.
        ranks: processes of one run.
        precision: the quicker one here, as measured.
    """

    cores: int
    ranks: int
    precision: Precision

    def jobs(self, chains: int) -> int:
        """Commands beside each other: one a chain of runs, and the cores that are over go to their threads."""
        return max(1, min(self.cores // self.ranks, chains))

    def cores_of_chain(self, chains: int) -> float:
        """Cores that a chain has on average; less than 1 where chains wait for each other."""
        jobs = self.jobs(chains)
        threads = max(1, self.cores // (self.ranks * jobs))
        return min(self.cores, jobs * self.ranks * threads) / chains


@dataclass(frozen=True)
class RunRecipe:
    """How a kind of run trains.

    Attributes:
        config, deepspeed: names of the files that it starts from, in launchers/configs and ds_configs.
        batch_size, learning_rate: of all ranks together.
        model: dotted settings of the network, for a run that draws its weights.
        settings: the other dotted settings.
        optimizer: parameters of the optimizer besides.
        zero_stage: 0 where a few ranks hold everything: of a small model an update is most of a step otherwise.
        share: of a chain's training time.
        most_epochs: see MOST_EPOCHS.
    """

    config: str
    deepspeed: str
    batch_size: int
    learning_rate: float
    model: dict[str, Any]
    settings: dict[str, Any]
    optimizer: dict[str, Any]
    zero_stage: int
    share: float
    most_epochs: float


@dataclass(frozen=True)
class Recipe:
    """How all kinds of runs train; one without a share is not run."""

    runs: dict[Kind, RunRecipe] = field(default_factory=dict)

    @property
    def size(self) -> str:
        """The network in words."""
        model = next(iter(self.runs.values())).model
        if "model.backbone" in model:
            return f"the sizes of {model['model.backbone']}"
        return f"{model['model.num_hidden_layers']} layers of {model['model.hidden_size']}"


def recipe(facts: CatalogFacts, machine: Machine, minutes: float, chains: int) -> Recipe:
    """The recipe for a shop on a machine, within so many minutes; a pure function.

    Args:
        chains: of runs, that share the machine: a way of writing titles, a seed, a start and a share of labels each.
    """
    core_minutes = minutes * machine.cores_of_chain(chains)
    sizes = next(sizes for least, sizes in reversed(SIZES) if core_minutes >= least)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
    model = {f"model.{name}": value for name, value in zip(names, sizes, strict=True)}
    model |= {"model.vocab_size": _words(facts.items), **PATCHES, **_start(*sizes[:2])}
    prefix = "cpu_bf16" if machine.precision == "bf16" else "cpu"
    return Recipe(
        {
            kind: RunRecipe(
                config=config,
                deepspeed=f"{prefix}_{DEEPSPEED}",
                batch_size=-(-_batch(kind, facts) // machine.ranks) * machine.ranks,
                learning_rate=LEARNING_RATE[kind],
                model=model,
                settings={"model.dropout": 0.0, **DATA, **_of_kind(kind, facts, sizes[1])},
                optimizer={"weight_decay": WEIGHT_DECAY[kind], "fused": True},
                zero_stage=0,
                share=SHARES[kind],
                most_epochs=MOST_EPOCHS[kind],
            )
            for kind, config in CONFIGS.items()
            if SHARES[kind] > 0
        }
    )


def with_text_model(chosen: Recipe, folder: str) -> Recipe:
    """The recipe with a published BERT as the text side: it brings its sizes and its words.

    Trained weights have a rate of their own, the one that was measured for them, and a width of their own.
    """
    changes: dict[str, Any] = {"model": {"model.backbone": folder, **PATCHES}, "learning_rate": 2e-4}
    runs: dict[Kind, RunRecipe] = {}
    for kind, run in chosen.runs.items():
        head = {} if kind == "stage1" else {"model.head_range": TEXT_MODEL_HEAD_RANGE}
        runs[kind] = RunRecipe(**{**vars(run), **changes, "settings": run.settings | head})
    return Recipe(runs)


def _start(layers: int, width: int) -> dict[str, Any]:
    """Deviations of the drawn weights: the deeper and wider the network, the narrower they start.

    Attention makes the tokens of a sequence more alike in each layer (Dong et al., "Attention is not all you need",
    2021); with wider weights they are one before anything is learned.
    """
    return {
        "model.initializer_range": round((2 / (layers * width)) ** 0.5, 4), "model.position_range": POSITION_RANGE,
    }  # fmt: skip


def _words(items: int) -> int:
    """Of the vocabulary: titles of a few hundred items have no more, and rare words learn nothing."""
    return 2000 if items < 2000 else 4000 if items < 50_000 else 8000


def _batch(kind: Kind, facts: CatalogFacts) -> int:
    return BATCH[kind] // 2 if facts.items < 2000 else BATCH[kind]


def _of_kind(kind: Kind, facts: CatalogFacts, width: int) -> dict[str, Any]:
    if kind == "stage1":
        return {"masking.mpm_target": "hog"}
    # An answer layer of 65 classes that starts narrower takes many more steps until it tells them apart. At the last
    # step the rate has come to 0; where titles name the category, title and picture are best long before it, and the
    # picture alone is not.
    settings: dict[str, Any] = {
        "task.views": ["full", "text", "image"], "best.metric": "last", "model.head_range": round(width**-0.5, 3),
        "data.word_dropout": WORD_DROPOUT,
    }  # fmt: skip
    if kind == "classification":
        settings |= CLASSIFICATION
    else:
        # With right and wrong tags of an item in one batch what is left to be learnt is the difference between the
        # tags; and its picture is read once. Blocks that divide the batch are not parted by its ends.
        block = max(1, _batch(kind, facts) // BLOCKS)
        settings |= {"data.share_images": True, "data.shuffle_block": block, "data.shuffle_window": 1}
    return settings
