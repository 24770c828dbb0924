"""The loader on the fake device, with all that stands around it in `mbsd bench loader`.

DALI asks the driver itself and finds no GPU, so only torchvision decodes here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.conftest import Shop
from tests.fake_cuda.recorder import read
from tests.ranks import ROOT

BENCH = """
import json, sys
from pathlib import Path
import mbsd.tools.bench.loader as loader
loader.dali_installed = lambda: False
small = dict(image_size=64, batch=8, batches=4, turns=1, num_workers=(1,), train=False, epochs=False)
print(json.dumps(loader.measure_loader(loader.LoaderBench(Path(sys.argv[1]), **small))))
"""
# A rank's own GPU may be another than the first, and a device need not have a number.
WITHOUT_A_NUMBER = """
import torch
from mbsd.data.prefetch import prefetched

class Numbers:
    def to(self, device, non_blocking):
        self.there = torch.ones(3).pin_memory().to(device, non_blocking=non_blocking)
        return self
    def record_stream(self, stream):
        self.there.record_stream(stream)

torch.cuda.set_device(1)
found = list(prefetched(iter(range(3)), lambda _: Numbers(), torch.device("cuda")))
assert [str(each.there.device) for each in found] == ["cuda:1"] * 3, found
"""


def on_device(library: Path, folder: Path, *words: str) -> str:
    options = ["--capability", "90", "--devices", "2", "--library", str(library), "--log", str(folder / "log")]
    command = [sys.executable, "-m", "tests.fake_cuda.run", *options, "--", "python", "-c", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def test_the_bench_measures_both_ways(fake_cuda: Path, shop: Shop, tmp_path: Path) -> None:
    found = json.loads(on_device(fake_cuda, tmp_path, BENCH, str(shop.catalog)).splitlines()[-1])
    assert [row["way"] for row in found["loaders"]] == ["torchvision", "plain"]
    assert all(row["images_per_s"] > 0 for row in found["loaders"])


def test_a_device_without_a_number_is_the_current_one(fake_cuda: Path, tmp_path: Path) -> None:
    on_device(fake_cuda, tmp_path, WITHOUT_A_NUMBER)
    (parts,) = read(tmp_path / "log").values()
    assert {event.device for part in parts for event in part.of("context")} == {1}
