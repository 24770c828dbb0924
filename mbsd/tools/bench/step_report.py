"""The numbers of `mbsd bench step` as a table."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

HEADINGS = (
    "model", "stage", "lengths", "step", "samples/s", "tokens/s", "s", "x packed", "CPU x", "MFU", "kept", "peak"
)  # fmt: skip


def print_step(numbers: dict[str, Any]) -> None:
    """Print a row for each contestant.

    CPU x is the ratio of the process's CPU seconds, MFU is of the matmul peak that was measured, and of the
    data sheet's where it is known; kept (for the backward) and peak are GiB in float32.
    """
    table = Table()
    for n, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if n < 4 else "right", no_wrap=True)
    for model, of_model in numbers["models"].items():
        for stage, of_stage in of_model["stages"].items():
            for lengths, contestants in of_stage.items():
                table.add_section()
                for name, found in contestants.items():
                    table.add_row(
                        f"{model}, {of_model['layers']}", stage, lengths, name,
                        f"{found['samples_per_s']:,.1f}", f"{found['tokens_per_s']:,.0f}", f"{found['seconds']:.3f}",
                        f"{found['x_packed']:.2f}", f"{found['cpu_x_packed']:.2f}",
                        "/".join(f"{found[key]:.0%}" for key in ("mfu", "mfu_data_sheet") if key in found),
                        f"{found['saved_bytes'] / (1 << 30):.2f}", f"{found['peak_bytes'] / (1 << 30):.2f}",
                    )  # fmt: skip
    console = Console(width=130)  # narrower, it would cut the numbers
    console.print(table)
    sheet = numbers["data_sheet_flops"]
    against = "" if sheet is None else f"; data sheet {sheet / 1e12:.0f}"
    console.print(
        f"{numbers['device']}, {numbers['precision']}, {numbers['batch']} samples a step; matrix products reach "
        f"{numbers['matmul_flops'] / 1e12:.2f} TFLOP/s{against}",
        highlight=False,
    )
