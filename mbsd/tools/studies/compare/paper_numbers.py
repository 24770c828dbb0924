"""What the paper reports in its tables: "MBSD", Tables 1, 4, 5 and 6. On its own data sets, which are not public."""

from __future__ import annotations

FIVE = ("accuracy", "precision", "recall", "f1", "roc_auc")

# Task -> data set -> model -> metric -> percent.
Numbers = dict[str, dict[str, dict[str, dict[str, float]]]]


def _of(metrics: tuple[str, ...], rows: dict[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    return {model: dict(zip(metrics, values, strict=True)) for model, values in rows.items()}


PAPER: Numbers = {
    "attributes": {
        "IAVP-G": _of(FIVE, {
            "BERT": (72.43, 75.93, 64.84, 69.95, 80.10),
            "ViT": (59.20, 62.82, 43.08, 51.11, 63.37),
            "M6": (70.26, 67.92, 75.66, 71.59, 76.70),
            "FashionBERT": (72.48, 75.74, 65.32, 70.14, 80.23),
            "ViLT": (69.11, 73.34, 59.08, 65.45, 76.27),
            "OFA": (71.20, 73.31, 65.78, 69.34, 78.50),
            "MBSD": (74.14, 77.92, 66.66, 71.85, 82.13),
        }),
        "IAVP-F": _of(FIVE, {
            "BERT": (84.78, 87.39, 92.05, 89.66, 88.90),
            "ViT": (70.29, 76.24, 85.05, 80.40, 62.92),
            "M6": (84.34, 85.48, 94.14, 89.60, 88.36),
            "FashionBERT": (84.87, 87.05, 92.68, 89.78, 89.09),
            "ViLT": (83.20, 85.51, 92.17, 88.72, 86.78),
            "OFA": (83.38, 86.46, 91.08, 88.71, 86.86),
            "MBSD": (85.57, 87.94, 92.57, 90.19, 89.86),
        }),
    },
    "alignment": {
        "": _of(FIVE, {
            "BERT": (83.69, 82.71, 81.61, 82.16, 90.60),
            "ViT": (84.40, 82.62, 83.69, 83.15, 91.11),
            "ViLT": (84.19, 83.15, 82.31, 82.73, 91.30),
            "FashionBERT": (84.32, 83.32, 82.43, 82.87, 90.88),
            "MBSD": (84.73, 84.37, 82.00, 83.17, 91.53),
        }),
    },
    "classification": {
        "": _of(("accuracy",), {
            "BERT": (91.45,), "ViT": (64.32,), "ViLT": (86.88,), "M6": (92.03,), "FashionBERT": (91.69,),
            "MBSD": (92.20,),
        }),
    },
}  # fmt: skip

# Table 6: row -> ROC-AUC on IAVP-G, mean and spread over 16 fine-tunings, percent.
TABLE_6 = {
    1: (81.74, 0.30), 2: (78.70, 0.70), 3: (80.48, 0.41), 4: (81.31, 0.33), 5: (81.10, 0.58), 6: (81.35, 0.35),
    7: (81.58, 0.32), 8: (81.61, 0.31),
}  # fmt: skip
