"""The rules of what to try next hold where they should alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from mbsd.tools.trial_report.inputs import Scored
from tests.studies.page_shop import FLAT, RISING, Shop, compared, holding, page, scored, write_run


def test_rules_hold_where_they_should(shop: Shop, tmp_path: Path) -> None:
    task: Literal["classification"] = "classification"
    bad, good = (scored(shop, task, name, wrong) for name, wrong in (("bad", 0.6), ("good", 0.0)))

    def rules(model: Scored, values: list[float], losses: tuple[float, float], wait: float = 0.01) -> set[str]:
        write_run(model.run, task, values, losses, wait)
        return holding(page(tmp_path, compared(shop, task, model)))

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


def test_rules_that_compare_models(shop: Shop, tmp_path: Path) -> None:
    task: Literal["classification"] = "classification"
    good = scored(shop, task, "pre-trained", 0.05)
    worse = scored(shop, task, "from scratch", 0.4, pretrained=False)
    tenth = scored(shop, task, "a tenth", 0.5, labels=0.1)
    pretraining, labels = "Fine-tuning in place of pre-training", "More labels"
    assert not holding(page(tmp_path, compared(shop, task, good, worse))) & {pretraining, labels}
    swapped = replace(worse, pretrained=True), replace(good, pretrained=False)
    assert pretraining in holding(page(tmp_path, compared(shop, task, *swapped)))
    assert labels in holding(page(tmp_path, compared(shop, task, good, tenth)))
    same = scored(shop, task, "as good with a tenth", 0.05, seed=3, labels=0.1)
    assert labels not in holding(page(tmp_path, compared(shop, task, good, same)))


def test_a_short_run_is_not_judged(shop: Shop, tmp_path: Path) -> None:
    model = scored(shop, "classification", "short", 0.3)
    write_run(model.run, "classification", RISING[:2], (0.5, 0.6))
    root = page(tmp_path, compared(shop, "classification", model))
    [longer] = [rule for rule in root.all("div", class_="unknown") if "Train longer" in rule.text]
    assert "the run is too short to tell: 2 validations" in longer.text and "Train longer" not in holding(root)
