"""The two engines that mine a log with one SQL text: DuckDB in this process, or Spark on any number of machines."""

from __future__ import annotations

from pathlib import Path

from mbsd.catalog.mining.sql_engine import Engine, EngineName
from mbsd.errors import UserError


def open_engine(
    name: EngineName, *, seed: int, folder: Path, threads: int = 0, memory_limit: str = "", master: str = ""
) -> Engine:
    """Start an engine; `draw(s)` is its portable hash of (seed, s), 60 bits.

    Args:
        name: duckdb or spark.
        seed: of all draws.
        folder: for what does not fit into memory.
        threads: 0 = one per core; for Spark of a `local` master.
        memory_limit: such as 4GB; empty = the engine's default.
        master: of Spark, such as spark://host:7077; empty = this machine.
    """
    if name == "duckdb":
        if master:
            raise UserError(f"master {master!r} is an option of the engine spark; the engine is duckdb")
        from mbsd.catalog.mining.duckdb import DuckDB

        return DuckDB(seed, folder, threads, memory_limit)
    if name == "spark":
        from mbsd.catalog.mining.spark import Spark

        return Spark(seed, folder, threads, memory_limit, master)
    raise UserError(f"engine {name!r}; expected duckdb or spark")
