"""The commands of a trial, as a user would type them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mbsd.config.run_files import DONE
from mbsd.tools.studies.commands import Command, in_clone
from mbsd.tools.studies.trial.recipe import Kind, RunRecipe
from mbsd.tools.studies.trial.settings import TASKS, TITLES, Run, Trial, labels_part

VALIDATIONS = 5  # in a run at most, that after its last step included
VALIDATED = 2048  # rows at most
# Tags that are asked: of brands and product numbers the commonest alone, since a floor has a class for each, and none
# that a run's data.max_query_tokens (64, of which each character is one at most) would cut.
MAX_VALUES, MAX_CHARACTERS = 100, 60
MAX_SIDE = 128  # of a stored picture, of which a run sees 64 pixels: one of 320 takes 2.4 times as long to decode
BOOTSTRAP = 200  # resamples behind the intervals of the scores


def data_commands(trial: Trial, out: Path) -> Iterator[Command]:
    """Catalogues, task tables and floors, with titles as they are and masked: all runs and seeds read them."""
    masked = out / "items_masked.jsonl"
    named = [word for name in trial.mask_attributes for word in ("--attribute", name)]
    columns = [word for ours, theirs in trial.columns.items() for word in ("--column", f"{ours}={theirs}")]
    yield Command("mask", masked, ("catalog", "mask", trial.source, *columns, *named, "--out", masked), after=())
    more = ("--max-rejects", trial.max_rejects, "--max-side", MAX_SIDE)
    sources: tuple[tuple[object, ...], ...] = ((trial.source, *columns), (masked,))
    for titles, items, after in zip(TITLES, sources, ((), ("mask",)), strict=True):
        yield Command(
            f"{titles}_build", out / titles / "catalog/catalog.json",
            ("catalog", "build", *items, "--images", trial.images, "--out", out / titles / "catalog", *more),
            after=after,
        )  # fmt: skip
    for titles in TITLES:
        yield from _tables(trial, out / titles)


def _tables(trial: Trial, folder: Path) -> Iterator[Command]:
    """Tables with their floors for one way of writing the titles, which names `folder`.

    With titles masked the splits are those of titles as they are: a test item is one that no training item equals.
    """
    titles, catalog = folder.name, ("--catalog", folder / "catalog")
    masked: tuple[object, ...] = () if titles == "plain" else ("--group-titles", folder.parent / "plain/catalog")
    asked = ("--balance", "value", "--max-values", MAX_VALUES, "--max-characters", MAX_CHARACTERS)
    more_of: dict[str, tuple[object, ...]] = {"attributes": asked, "categories": ("--min-items", trial.min_items)}
    for kind in (TASKS[task] for task in reversed(trial.tasks)):
        table = folder / f"{kind}.parquet"
        yield Command(
            f"{titles}_{kind}", table, ("tables", "derive", kind, *catalog, "--out", table, *more_of[kind], *masked),
            after=tuple(dict.fromkeys(("plain_build", f"{titles}_build"))),
        )  # fmt: skip
        for share in trial.label_shares:
            name = "_".join([kind, *labels_part(share)])
            some = folder / f"{name}.parquet"
            if share < 1:
                yield Command(
                    f"{titles}_{name}", some,
                    ("tables", "sample", *catalog, "--table", table, "--share", share, "--out", some),
                    after=(f"{titles}_{kind}",),
                )  # fmt: skip
            floors = folder / f"{name}_floors.json"
            answers = floors.with_suffix(".parquet")
            seen: tuple[object, ...] = ()
            after = [f"{titles}_{name}"]
            if kind == "attributes":  # their models start from that of categories, which has seen these labels
                categories = "_".join(["categories", *labels_part(share)])
                seen = ("--also", folder / f"{categories}.parquet")
                after.append(f"{titles}_{categories}")
            yield Command(
                f"{titles}_{name}_floors", floors,
                ("floors", *catalog, "--table", some, "--out", floors, "--answers", answers, *seen),
                after=tuple(after),
            )  # fmt: skip


def training(run: Run, out: Path, recipe: RunRecipe, steps: int, settings: Path) -> Command:
    """A training run.

    Args:
        steps: of the optimizer.
        settings: DeepSpeed's JSON.
    """
    folder = run.folder(out)
    before = run.before
    return Command(
        run.name, folder / DONE,
        (*run_words(recipe, settings, steps), "--run.dir", folder, "--run.seed", run.seed,
         "--run.validate_every", -(-steps // VALIDATIONS), "--run.validate_samples", VALIDATED,
         *read_words(run, out), *start_words(recipe, before.folder(out) if before is not None else None)),
        launcher_of(run.kind), after=(before.name,) if before is not None else (),
    )  # fmt: skip


def evaluations(run: Run, out: Path) -> Iterator[Command]:
    """What is scored of a training run on the test split; each view by itself."""
    folder, model = out / run.titles, run.folder(out)
    if run.kind != "stage1":
        yield _evaluation(run, folder / f"{run.result}.json", model, folder / f"{run.table}.parquet")
    if run.kind == "stage1":  # the others have been told the categories
        clusters = _evaluation(run, folder / f"{run.clusters}.json", model, folder / "categories.parquet")
        yield Command(
            f"{run.titles}_{run.clusters}_scores", clusters.done, (*clusters.words, "--task", "clustering"),
            clusters.launcher, after=clusters.after,
        )  # fmt: skip


def _evaluation(run: Run, scores: Path, model: Path, table: Path) -> Command:
    words = ("--model", model, "--out", scores, "--data.catalog", table.parent / "catalog", "--data.table", table,
             *scoring_words(), "--bootstrap", BOOTSTRAP)  # fmt: skip
    return Command(f"{run.name}_scores", scores, words, "evaluate", after=(run.name,))


def scoring_words() -> tuple[object, ...]:
    """How an evaluation reads pictures and batches."""
    return "--data.image_size", 64, "--data.num_workers", 1, "--micro_batch", 128


def run_words(recipe: RunRecipe, settings: Path, steps: int) -> tuple[object, ...]:
    """A run's files, length and settings, without what it reads, starts from and writes."""
    return (
        "--config", in_clone(f"launchers/configs/{recipe.config}.yaml"), "--deepspeed_config", settings,
        "--run.max_steps", steps, *options(recipe.settings),
    )  # fmt: skip


def read_words(run: Run, out: Path) -> tuple[object, ...]:
    """Catalogue and table of a run; stage 1 does not read the items that fine-tunings are tested on."""
    folder = out / run.titles
    catalog = ("--data.catalog", folder / "catalog")
    if run.kind != "stage1":
        return *catalog, "--data.table", folder / f"{run.table}.parquet"
    tested = [str(folder / f"{TASKS[task]}.parquet") for task in run.tasks]
    return *catalog, "--data.held_out", json.dumps(tested)


def start_words(recipe: RunRecipe, stage1: Path | None) -> tuple[object, ...]:
    """Where the weights come from: a run of stage 1, which brings its sizes, or the recipe's model, drawn anew."""
    if stage1 is not None:
        return "--run.init_from", stage1
    return "--run.init_from", "null", *options(recipe.model)


def options(settings: Mapping[str, Any]) -> Iterator[str]:
    """Dotted settings as words of a command line."""
    for name, value in settings.items():
        yield from (f"--{name}", value if isinstance(value, str) else json.dumps(value))


def launcher_of(kind: Kind) -> str:
    """Which of `launchers/` trains it."""
    return "finetune" if kind in TASKS else "pretrain"
