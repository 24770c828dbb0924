"""`launchers/ablation.py`: Table 6, what each part of the method contributes."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from mbsd.tools.studies.pictures import draw_rows
from mbsd.tools.studies.settings import AblationConfig
from mbsd.tools.studies.study import percent, read_scores, report, roc_auc, run_study, write_csv


def run_ablation(config: AblationConfig) -> None:
    """Run the study and write `ablation.md`, `ablation.csv` and `ablation.png` to `config.out`."""
    runner, cells = run_study(config, {"test": {"views": ["full"]}})
    values = [roc_auc(read_scores(cell.scores("test"))["views"]["full"]["all"], cell) for cell in cells]
    out = Path(config.out)
    write_csv(
        out / "ablation.csv",
        [
            {"row": cell.row, "model": cell.name, "seed": cell.seed, "batch_size": cell.batch_size,
             "learning_rate": cell.learning_rate, "roc_auc": value}
            for cell, value in zip(cells, values, strict=True)
        ],
    )  # fmt: skip
    names = {cell.row: cell.name for cell in cells}
    of_row = {row: [value for cell, value in zip(cells, values, strict=True) if cell.row == row] for row in names}
    table = Table("ID", "model", "AUC", "best", "runs")
    for row, name in names.items():
        table.add_row(str(row), name, percent(of_row[row]), percent([max(of_row[row])]), str(len(of_row[row])))
    grid = [
        f"{len({cell.batch_size for cell in cells})} batch sizes",
        f"{len({cell.learning_rate for cell in cells})} learning rates",
        f"{len({cell.seed for cell in cells})} seeds",
    ]
    text = f"ROC-AUC of the test rows in percent, mean ± standard deviation over {', '.join(grid)}."
    report(runner.console, out / "ablation.md", "Ablation", [(text, table)])
    draw_rows(out / "ablation.png", {f"{row} {names[row]}": of_row[row] for row in names}, "ROC-AUC, %")
    runner.console.print(f"{out}/ablation.png, ablation.md, ablation.csv", highlight=False)
