"""Rules about title, picture and pre-training: which part of the model lags behind."""

from __future__ import annotations

from collections.abc import Iterator

from mbsd.tools.studies.trial_report.findings import Evidence, Findings, RuleText, interval
from mbsd.tools.studies.trial_report.inputs import VIEWS
from mbsd.tools.studies.trial_report.margins import SHOWN, difference

FUSION = 0.005  # of the metric, title and picture over the better of the two


def picture(it: Findings) -> Iterator[Evidence]:
    """Is the picture alone below its floor?"""
    yield from _view(it, "image")


def title(it: Findings) -> Iterator[Evidence]:
    """Is the title alone below its floor?"""
    yield from _view(it, "text")


def _view(it: Findings, view: str) -> Iterator[Evidence]:
    if (view, it.metric) not in it.margins:
        return
    margin = it.margins[view, it.metric]
    holds = margin.verdict == "below"
    found = f"{SHOWN[it.metric]} {margin.model:.3f}, floor {margin.floor:.3f}, {interval(margin)}"
    advice = f"The floor shows that {-margin.value:.3f} more is in the {VIEWS[view]}"
    yield Evidence(it.where, found, holds, advice if holds else "")


def fusion(it: Findings) -> Iterator[Evidence]:
    """Do both together bring more than each?"""
    values = {view: it.margins[view, it.metric].model for view in it.compared.given.views}
    if not {"full", "text", "image"} <= values.keys():
        return
    single = "image" if values["image"] > values["text"] else "text"
    gain = values["full"] - values[single]
    holds = gain <= FUSION
    found = (
        f"{SHOWN[it.metric]} {values['full']:.3f} with both, {values['text']:.3f} title, {values['image']:.3f} picture"
    )
    other = VIEWS["text" if single == "image" else "image"]
    advice = f"Look at the {other}: beside the {VIEWS[single]} it adds {gain:+.3f}"
    yield Evidence(it.where, found, holds, advice if holds else "")


def pretraining(it: Findings) -> Iterator[Evidence]:
    """Does pre-training bring anything?"""
    named = {scored.pretrained: scored.model for scored in reversed(it.compared.given.models)}
    if len(named) < 2:
        return
    ours, theirs = (it.compared.models[named[start]][it.view] for start in (True, False))
    found = difference(it.compared, (it.view, it.metric, named[False]), ours, theirs, it.resamples)
    holds = found.verdict != "above"
    text = f"{SHOWN[it.metric]} {found.model:.3f} pre-trained, {found.floor:.3f} from scratch, {interval(found)}"
    advice = "Pre-training costs here: give its minutes to fine-tuning, or pre-train on more items than have labels"
    if found.verdict == "even":
        advice = "It is not shown that pre-training brings anything here: compare more seeds, at equal minutes in all"
    yield Evidence(it.where, text, holds, advice if holds else "")


RULES: tuple[RuleText, ...] = (
    (
        "Pictures: smaller patches, larger pictures, more epochs on pictures alone",
        "From the picture alone, the model is below the best floor that reads the picture, with an interval below 0.",
        picture,
    ),
    (
        "Titles: a published text model as a start, or more epochs on titles alone",
        "From the title alone, the model is below the best floor that reads the title, with an interval below 0.",
        title,
    ),
    (
        "One of title and picture is enough, or both are not used together",
        f"Title and picture are not more than {FUSION} better than the better one of them alone.",
        fusion,
    ),
    (
        "Fine-tuning in place of pre-training",
        "Pre-trained less from scratch, with as many labels, has an interval that is not above 0.",
        pretraining,
    ),
)
