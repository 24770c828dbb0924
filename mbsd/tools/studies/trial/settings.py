"""What a trial is asked for, and the training runs that follow from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mbsd.errors import UserError
from mbsd.tools.studies.trial.recipe import SHARES, Kind

TITLES = {"plain": "as they are", "masked": "masked"}
STARTS = {"pretrained": "pre-trained", "scratch": "from scratch"}
# Kind of fine-tuning -> kind of its table.
TASKS: dict[Kind, str] = {"classification": "categories", "attributes": "attributes"}


@dataclass(frozen=True)
class Trial:
    """Settings of `mbsd trial`; `source` and `images` are those of `mbsd catalog build`.

    Attributes:
        columns: our name of a column of `source` -> the source's, where it is another.
        mask_attributes: attributes whose values are taken out of the masked titles, beside the categories.
        min_items: categories with fewer items are left out.
        max_rejects: share of the rows naming a picture whose pictures may be rejected.
        attributes: False: categories alone are asked.
        minutes: of the whole command, on the cores that it may use.
        seeds: each is run.seed of all runs once.
        starts: of the fine-tunings, of STARTS.
        equal_time: a run from scratch trains for as long as the other and its stage 1 together.
        label_shares: of the training rows that fine-tunings read, each by itself.
        text_model: folder of a published BERT that the text side starts from; `minilm`: the one of the optional extra.
        pretrain_steps, finetune_steps: in place of what the budget gives.
    """

    source: str
    images: str
    columns: Mapping[str, str] = field(default_factory=dict)
    mask_attributes: tuple[str, ...] = ()
    min_items: int = 20
    max_rejects: float = 0.05
    attributes: bool = True
    minutes: float = 60
    seeds: tuple[int, ...] = (0,)
    starts: tuple[str, ...] = ("pretrained",)
    equal_time: bool = False
    label_shares: tuple[float, ...] = (1.0,)
    text_model: str | None = None
    pretrain_steps: int | None = None
    finetune_steps: int | None = None

    @property
    def chains(self) -> int:
        """Chains of runs, each of which waits for its own alone: stage 1, then one fine-tuning a task."""
        return len(TITLES) * len(self.seeds) * len(self.starts) * len(self.label_shares)

    @property
    def tasks(self) -> tuple[Kind, ...]:
        """The kinds of its fine-tunings, of TASKS."""
        return tuple(kind for kind in TASKS if kind != "attributes" or self.attributes)

    def check(self) -> None:
        """Raise UserError for settings that make no sense."""
        if not all(0 < share <= 1 for share in self.label_shares):
            raise UserError(f"--label-share {list(self.label_shares)}: expected shares above 0, up to 1")
        if len(set(self.label_shares)) < len(self.label_shares):
            raise UserError(f"--label-share {list(self.label_shares)}: name each share once")
        if self.equal_time and len(self.starts) < 2:
            raise UserError(
                "--worth: the recipe has no stage 1 to compare with: leave it out, or give SHARES['stage1'] of "
                "mbsd/tools/studies/trial/recipe.py a share"
            )
        if self.minutes <= 0:
            raise UserError(f"--minutes {self.minutes:g}: expected more than 0")


def starts(scratch: bool) -> tuple[str, ...]:
    """What fine-tunings begin with: stage 1 where the recipe has one; freshly drawn weights too where asked for."""
    pretrained = ("pretrained",) if SHARES["stage1"] > 0 else ()
    return (*pretrained, *(("scratch",) if scratch or not pretrained else ()))


@dataclass(frozen=True)
class Run:
    """One training run of a trial.

    Attributes:
        titles: of TITLES.
        start: of STARTS; "" of stage 1.
        share: of the labels.
        is_first: of the seeds: its results have no seed in their names.
        tasks: of the trial; stage 1 does not read the items that these are tested on.
    """

    titles: str
    kind: Kind
    seed: int
    start: str = ""
    share: float = 1.0
    is_first: bool = True
    tasks: tuple[Kind, ...] = tuple(TASKS)

    @property
    def result(self) -> str:
        """Name of its folder below that of its titles, and of its scores: attributes_pretrained_labels10_seed1."""
        return "_".join([self.kind, *([self.start] if self.start else []), *labels_part(self.share), *self._seed_part])

    @property
    def clusters(self) -> str:
        """Name of the scores of a stage 1's vectors, grouped."""
        return "_".join(["clustering", *self._seed_part])

    @property
    def table(self) -> str:
        """Name of the table that it reads, without .parquet."""
        return "_".join([TASKS[self.kind], *labels_part(self.share)])

    @property
    def name(self) -> str:
        """Unique in the trial."""
        return f"{self.titles}_{self.result}"

    @property
    def before(self) -> Run | None:
        """The run that it starts from.

        Attributes start from the model that was fine-tuned on categories: asked whether a tag holds, a small model that
        has never read a picture for an answer stays at chance for thousands of steps.
        """
        if self.kind == "attributes":
            return replace(self, kind="classification")
        if self.start != "pretrained":
            return None
        return Run(self.titles, "stage1", self.seed, is_first=self.is_first)

    def folder(self, out: Path) -> Path:
        """Its run folder."""
        return out / self.titles / self.result

    @property
    def _seed_part(self) -> tuple[str, ...]:
        return () if self.is_first else (f"seed{self.seed}",)


def runs_of(trial: Trial) -> Iterator[Run]:
    """All training runs, those that others start from first."""
    for seed in trial.seeds:
        first = seed == trial.seeds[0]
        if "pretrained" in trial.starts:
            for titles in TITLES:
                yield Run(titles, "stage1", seed, is_first=first, tasks=trial.tasks)
        for share in trial.label_shares:
            for task in trial.tasks:
                for start in trial.starts:
                    for titles in TITLES:
                        yield Run(titles, task, seed, start, share, first)


def labels_part(share: float) -> tuple[str, ...]:
    """What a share of the labels adds to a name: ("labels10",) of 0.1, nothing of all."""
    return () if share == 1 else (f"labels{100 * share:g}",)
