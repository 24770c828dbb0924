"""The record that a process on the fake device leaves: what was asked of the device, in order, and by whom."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FRAME = re.compile(r'  File "(.*)", line (\d+) in (.*)')


@dataclass(frozen=True)
class Frame:
    """A line of a Python stack. `file` begins at its package or at the checkout: `deepspeed/utils/timer.py`."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.function}"


@dataclass(frozen=True)
class Event:
    """One thing that was asked of the device.

    Attributes:
        kind: wait (of the host), pageable (copy), context (the first use of a device), allocation, peer,
            refused (a device's number), nccl, unsupported (function), kernel, memory, mark.
        values: what the device said about it: name, device, bytes, launches, text.
        stack: innermost frame first; () where the kind has none, or no Python was in the thread.
    """

    kind: str
    values: dict[str, str]
    stack: tuple[Frame, ...] = ()

    @property
    def name(self) -> str:
        """The function of CUDA, the collective or the kernel."""
        return self.values.get("name", "")

    @property
    def device(self) -> int:
        """The device's number."""
        return int(self.values["device"])

    def asked_by(self) -> Frame | None:
        """Who asked: the innermost frame of ours or of DeepSpeed (not of its layer over torch), else of torch."""
        ours = [frame for frame in self.stack if frame.file.startswith(("mbsd/", "deepspeed/"))]
        asked = [frame for frame in ours if not frame.file.startswith("deepspeed/accelerator/")]
        return next(iter([*asked, *self.stack]), None)

    def __str__(self) -> str:
        where = " < ".join(str(frame) for frame in self.stack[:4]) or "no Python in the thread"
        return f"{self.kind} {' '.join(f'{name}={value}' for name, value in self.values.items())} by {where}"


@dataclass
class Part:
    """What happened between two marks; `name` is the text of the mark that ends it."""

    name: str
    events: list[Event] = field(default_factory=list)

    def of(self, *kinds: str) -> list[Event]:
        """Its events of some kinds."""
        return [event for event in self.events if event.kind in kinds]

    def kernels(self) -> Counter[str]:
        """Launches by the kernel's (mangled) name."""
        return Counter({event.name: int(event.values["launches"]) for event in self.of("kernel")})

    def memory(self) -> dict[int, int]:
        """Device → bytes that torch's allocator had of it at the end."""
        return {event.device: int(event.values["bytes"]) for event in self.of("memory")}

    def asked(self, *kinds: str) -> Counter[str]:
        """How often who asked for events of some kinds: `function of CUDA < file:function` → number."""
        return Counter(f"{event.name} < {event.asked_by()}" for event in self.of(*kinds))


def read(log: Path) -> dict[int, list[Part]]:
    """Process → what it recorded, cut at its marks; of `log`.<process>."""
    found = {}
    for path in sorted(log.parent.glob(f"{log.name}.[0-9]*")):
        found[int(path.suffix[1:])] = parts(events(path.read_text(errors="replace").splitlines()))
    return found


def parts(events: Iterator[Event]) -> list[Part]:
    """The parts that marks end, and what comes after the last one."""
    found = [Part("after the last mark")]
    for event in events:
        if event.kind == "mark":
            found[-1].name = event.values["text"]
            found.append(Part("after the last mark"))
        else:
            found[-1].events.append(event)
    return found if found[-1].events else found[:-1]


def events(lines: Sequence[str]) -> Iterator[Event]:
    """The events that a file's lines tell of."""
    kind, values, stack = "", {}, []  # type: str, dict[str, str], list[Frame]
    for line in lines:
        if line.startswith("@"):
            if kind:
                yield Event(kind, values, tuple(stack))
            kind, *fields = line[1:].split("\t")
            values, stack = dict(word.split("=", 1) for word in fields), []
        elif (frame := FRAME.fullmatch(line)) is not None:
            stack.append(Frame(_from_package(frame[1]), int(frame[2]), frame[3]))
    if kind:
        yield Event(kind, values, tuple(stack))


def _from_package(path: str) -> str:
    for root in ("/site-packages/", "/mbsd/", "/tests/", "/launchers/"):
        before, found, after = path.rpartition(root)
        if found:
            return after if root == "/site-packages/" else root[1:] + after
    return path
