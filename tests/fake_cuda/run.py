"""Run a command on the fake device: python -m tests.fake_cuda.run --capability 70 --devices 8 -- python script.py …

It is built if need be. What was asked of it is written to `--log` PATH.<process>, which `recorder.read` reads.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fake_cuda.build import build_once

HERE = Path(__file__).resolve().parent


def environment(library: Path, capability: int, devices: int, log: Path | None, exchange: Path) -> dict[str, str]:
    """This process's environment, changed so that a Python started in it sees the fake devices.

    Args:
        library: as `build` made it.
        capability: 70 is a V100, 90 an H100.
        devices: how many there are.
        log: where each process writes what was asked of its device, its number behind the name.
        exchange: a folder in which the ranks of NCCL exchange files.
    """
    found = {name: value for name, value in os.environ.items() if name not in ("DS_ACCELERATOR", "FAKE_CUDA_LOG")}
    before = {name: [found[name]] if found.get(name) else [] for name in ("PYTHONPATH", "LD_LIBRARY_PATH")}
    found |= {
        "LD_PRELOAD": str(library),
        "LD_LIBRARY_PATH": ":".join([str(library.parent), *before["LD_LIBRARY_PATH"]]),
        "PYTHONPATH": ":".join([str(HERE / "site"), str(HERE.parents[1]), *before["PYTHONPATH"]]),
        "TRITON_LIBCUDA_PATH": str(library.parent),
        "FAKE_CUDA_CAPABILITY": str(capability),
        "FAKE_CUDA_DEVICES": str(devices),
        "FAKE_CUDA_NCCL": str(exchange),
        "OMP_NUM_THREADS": "1",
    }
    if log is not None:
        found["FAKE_CUDA_LOG"] = str(log)
    return found


def main(words: list[str]) -> int:
    """The command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.fake_cuda.run")
    parser.add_argument("--capability", type=int, default=70, help="70: V100, 90: H100")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--log", type=Path, help="write what was asked of the device to LOG.<process>")
    parser.add_argument("--library", type=Path, help="the device, where it has been built already")
    parser.add_argument("--zeros", action="store_true", help="what no kernel has computed is 0: torch caches no memory")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args(words)
    log = options.log.absolute() if options.log else None
    exchange = Path(tempfile.mkdtemp(prefix="fake-nccl-"))
    try:
        env = environment(options.library or build_once(), options.capability, options.devices, log, exchange)
        if options.zeros:
            env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
        command = [sys.executable if options.command[0] == "python" else options.command[0], *options.command[1:]]
        return subprocess.run(command, env=env).returncode
    finally:
        shutil.rmtree(exchange, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
