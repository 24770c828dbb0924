"""What to try next: rules over the trial's own numbers. Each says its threshold, what it found, and whether it holds.

The thresholds are conventions, so they stand on the page beside what was found.
"""

from __future__ import annotations

from collections.abc import Sequence

from mbsd.tools.studies.trial_report import rules_data, rules_training, rules_views
from mbsd.tools.studies.trial_report.findings import Findings, Rule


def rules(found: Sequence[Findings]) -> list[Rule]:
    """Every rule over every comparison; a rule that no comparison has anything for is left out."""
    every = (*rules_training.RULES, *rules_data.RULES, *rules_views.RULES)
    judged = [Rule(name, text, [one for of_one in found for one in evidence(of_one)]) for name, text, evidence in every]
    return [rule for rule in judged if rule.evidence]
