"""What a query's length and frequency alone tell of its label: a model could learn these instead of the match."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsd.catalog.mining import sql_matched
from mbsd.catalog.mining.sql_engine import Engine, number

SAMPLE = 20_000  # rows of a source, about: the figure is then exact to 0.003
FOLDS = 5


def length_and_frequency(engine: Engine) -> dict[str, dict[str, Any]]:
    """Return for each source of negatives how well a logistic regression tells them from the positives.

    It reads the characters, the words and log2(1 + frequency) of a query (see `sql_matched.ASKED`), each scaled to unit
    variance. The tables `positives`, `chosen` and `asked` have to be there.

    Returns:
        source -> roc_auc (out of `FOLDS` folds; 0.5 is a guess; None for fewer rows than folds), and the numbers of
        positives and negatives that it was computed from.
    """
    positives = _features(engine, "positives")
    found = {}
    for source in ("same-category", "rewrite"):
        negatives = _features(engine, f"(SELECT * FROM chosen WHERE source = '{source}') AS of_source")
        rows = {"positives": len(positives), "negatives": len(negatives)}
        found[source] = {"roc_auc": _roc_auc(positives, negatives), **rows}
    return found


def _features(engine: Engine, table: str) -> NDArray[np.float64]:
    """Return characters, words and log2(1 + frequency) of about `SAMPLE` rows of a table, float64 [rows, 3]."""
    every = -(-number(engine, f"SELECT count(*) FROM {table}") // SAMPLE) or 1
    words = sql_matched.WORDS.format(text="text")
    batches = engine.batches(sql_matched.MEASURED.format(rows=table, every=every, words=words))
    parts = [np.column_stack([column.to_numpy() for column in batch.columns]) for batch in batches]
    features = np.concatenate([np.zeros((0, 3)), *parts])
    features[:, 2] = np.log2(1 + features[:, 2])
    return features


def _roc_auc(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float | None:
    # Imported here: of a second that this takes, `mbsd pairs mine --help` needs nothing.
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if min(len(positives), len(negatives)) < FOLDS:
        return None
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    scores = cross_val_predict(
        model, np.concatenate([positives, negatives]), labels, cv=folds, method="decision_function"
    )
    return float(roc_auc_score(labels, scores))
