"""The rules of what to try next hold where they should alone."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from mbsd.tools.studies.trial_report.inputs import Comparison, Scored
from tests.studies.page_shop import FLAT, RISING, Shop, compared, holding, page, scored, write_run

Task = Literal["classification", "attributes"]


def test_rules_hold_where_they_should(page_shop: Shop, tmp_path: Path) -> None:
    task: Literal["classification"] = "classification"
    bad, good = (scored(page_shop, task, name, wrong) for name, wrong in (("bad", 0.6), ("good", 0.0)))

    def rules(model: Scored, values: list[float], losses: tuple[float, float], wait: float = 0.01) -> set[str]:
        write_run(model.run, task, values, losses, wait)
        return holding(page(tmp_path, compared(page_shop, task, model)))

    longer, larger, regularise, gpu, workers = (
        "Train longer", "A larger model, or smaller patches", "More regularisation, or more labels", "A GPU",
        "More workers, or pictures on a faster disk",
    )  # fmt: skip
    curve = {longer, larger, regularise, gpu, workers}
    # 3,200 samples at two a second are 27 minutes: not slow enough for a GPU.
    assert rules(bad, RISING, (0.5, 0.6)) & curve == {longer}
    assert rules(bad, FLAT, (0.5, 0.52)) & curve == {larger}
    assert rules(bad, FLAT, (0.2, 0.6)) & curve == {regularise}
    assert rules(bad, FLAT, (0.5, 0.6)) & curve == set()
    assert rules(bad, RISING + [0.37, 0.38], (0.5, 0.6)) & curve == {longer, gpu}
    assert rules(bad, RISING + [0.37, 0.38], (0.5, 0.6), wait=0.3) & curve == {longer, workers}
    noisy = [0.3 + 0.2 * (n % 2) for n in range(10)]  # steep by chance, if at all
    assert longer not in rules(bad, noisy, (0.5, 0.6))
    views = {
        "Pictures: smaller patches, larger pictures, more epochs on pictures alone",
        "Titles: a published text model as a start, or more epochs on titles alone",
    }
    assert rules(bad, FLAT, (0.5, 0.6)) >= views and not rules(good, FLAT, (0.5, 0.6)) & views
    rare = "Labels of rare classes"
    assert rare in rules(bad, FLAT, (0.5, 0.6)) and rare not in rules(good, FLAT, (0.5, 0.6))
    rules(bad, FLAT, (0.5, 0.6))
    assert "Label items of the rarest first: 靴子 (4); as good as" in (tmp_path / "trial.html").read_text(
        encoding="utf-8"
    )
    missing = "Complete titles and pictures"  # a tenth has no picture
    assert missing in rules(good, FLAT, (0.5, 0.6))


def test_rules_that_compare_models(page_shop: Shop, tmp_path: Path) -> None:
    task: Literal["classification"] = "classification"
    good = scored(page_shop, task, "pre-trained", 0.05)
    worse = scored(page_shop, task, "from scratch", 0.4, pretrained=False)
    pretraining = "Fine-tuning in place of pre-training"
    assert pretraining not in holding(page(tmp_path, compared(page_shop, task, good, worse)))
    swapped = replace(worse, pretrained=True), replace(good, pretrained=False)
    assert pretraining in holding(page(tmp_path, compared(page_shop, task, *swapped)))


def test_more_labels_are_judged_between_the_shares_of_a_task(page_shop: Shop, tmp_path: Path) -> None:
    """As a trial with two shares has them: a comparison for each, over the same test rows."""

    def share(name: str, wrong: float, labels: float, task: Task = "classification", seed: int = 0) -> Comparison:
        models = (scored(page_shop, task, name, wrong, seed=seed, model="MBSD"),)
        return replace(compared(page_shop, task, *models), title=f"{task}, {labels:.0%}", labels=labels)

    def told(*comparisons: Comparison) -> list[tuple[str, bool]]:
        """What is said of the rule, and whether it holds."""
        root = page(tmp_path, *comparisons)
        rules = [part for part in root.all("div", class_="rule") if next(part.all("h4")).text == "More labels"]
        return [(line.text, "holds" in rule.given["class"]) for rule in rules for line in rule.all("li")]

    everything, tenth = share("all", 0.05, 1.0), share("a tenth", 0.5, 0.1)
    same, fifth = share("as good", 0.05, 0.1, seed=3), share("a fifth", 0.3, 0.2)
    [(text, holds)] = told(everything, fifth, tenth)
    assert holds and re.match(r"classification, 100%: macro-F1 0\.[3-6]\d\d with 10% and (0\.9|1\.0)", text)
    rise = re.search(r"F1 (.*) with 10% and (.*) with 100%.*: \+(.*) a doubling", text)
    assert rise is not None
    less, more, doubling = map(float, rise.groups())
    assert doubling == pytest.approx((more - less) / math.log2(10), abs=1e-3)
    [(_, holds)] = told(everything, same)
    assert not holds
    other = share("other task", 0.5, 0.1, "attributes")
    assert told(everything, other) == [] and told(everything) == []
    (tmp_path / "other").symlink_to(page_shop.catalog)
    assert told(everything, replace(tenth, catalog=tmp_path / "other")) == []


def test_a_short_run_is_not_judged(page_shop: Shop, tmp_path: Path) -> None:
    model = scored(page_shop, "classification", "short", 0.3)
    write_run(model.run, "classification", RISING[:2], (0.5, 0.6))
    root = page(tmp_path, compared(page_shop, "classification", model))
    [longer] = [rule for rule in root.all("div", class_="unknown") if "Train longer" in rule.text]
    assert "the run is too short to tell: 2 validations" in longer.text and "Train longer" not in holding(root)
