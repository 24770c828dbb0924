"""The reference of all settings (docs/configuration.md), rendered from the dataclasses that hold them.

`python -m mbsd.tools.reference` prints it; `make docs` writes it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator
from types import NoneType
from typing import Any, Literal

from mbsd.config.paths import listed_settings
from mbsd.config.ranges import LEAST, SHARE
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.config.scoring import EmbedConfig, EvaluateConfig
from mbsd.tools.studies.compare.settings import CompareConfig
from mbsd.tools.studies.paper.settings import PaperConfig
from mbsd.tools.studies.settings import AblationConfig, MissingStudyConfig

LAUNCHERS: dict[str, type] = {
    "pretrain": PretrainConfig, "finetune": FinetuneConfig, "evaluate": EvaluateConfig, "embed": EmbedConfig,
    "ablation": AblationConfig, "missing": MissingStudyConfig, "compare": CompareConfig, "paper": PaperConfig,
}  # fmt: skip

INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from the dataclasses of the settings. Do not edit. -->

Each fact has one home:

- **YAML** (`--config`): data, model, objective and run folder. The tables below list its settings. Each can be
  overridden on the command line: `--run.dir runs/x --data.num_workers 8`.
- **DeepSpeed's JSON** (`--deepspeed_config`): batch size, precision, ZeRO stage, optimizer and schedule, under
  DeepSpeed's own names. `"auto"`, or nothing, stands for what follows from the run: `total_num_steps`,
  `warmup_num_steps` (a tenth of all steps), `warmup_max_lr` (the optimizer's `lr`), the micro-batch and the
  accumulation steps. No other key takes `"auto"`.

An unknown key, one that stands twice, a value of another type or range, or the same fact in both files is an error that
names the place, before any rank is met. Of DeepSpeed's keys (`mbsd/config/deepspeed_keys.py` has all of them) those are
refused, with the reason, that would train otherwise than the run says or that this project has a setting for. Both
files may be UTF-8, UTF-16 or UTF-32, in any locale. In every path `~` is the home folder. `grid.py` and `submit.py`
read the settings of the launcher that they start; their own options are in their `--help`.

## Which launcher reads what

| launcher | own settings | sections |
|---|---|---|
"""


@dataclasses.dataclass
class Section:
    """Settings below one or more prefixes, such as `data`."""

    settings: type
    prefixes: list[str]
    readers: list[str]


def reference() -> str:
    """The page as Markdown: what each launcher reads, then a table of every section, then each launcher's own."""
    sections = _sections()
    pages = [INTRODUCTION + "\n".join(_overview(name, settings) for name, settings in LAUNCHERS.items()) + "\n"]
    for section in (section for section in sections if any(True for _ in _rows(section.settings, ""))):
        readers = ", ".join(f"{name}.py" for name in section.readers)
        title = ", ".join(f"`{prefix}`" for prefix in section.prefixes)
        about = f"{_summary(section.settings)} Read by {readers}."
        prefix = f"{section.prefixes[0]}." if len(section.prefixes) == 1 else ""
        pages.append(_page(title, about, section.settings, prefix))
    for name, settings in LAUNCHERS.items():
        if any(True for _ in _rows(settings, "")):
            pages.append(_page(f"launchers/{name}.py", "Its own settings, outside all sections.", settings, ""))
    return "\n".join(pages)


def setting_names() -> set[str]:
    """Every setting by its dotted name, and each section by its prefix."""
    names = {field.name for settings in LAUNCHERS.values() for field in dataclasses.fields(settings)}
    for section in _sections():
        names |= {f"{prefix}.{f.name}" for prefix in section.prefixes for f in dataclasses.fields(section.settings)}
    return names


def undocumented() -> list[str]:
    """Settings without a text below their field."""
    found = []
    for settings in [*LAUNCHERS.values(), *(section.settings for section in _sections())]:
        docs = _attribute_docs(settings)
        names = (field.name for field in dataclasses.fields(settings) if _section_of(settings, field.name) is None)
        found += [f"{settings.__name__}.{name}" for name in names if name not in docs]
    return found


def _sections() -> list[Section]:
    found: dict[type, Section] = {}
    for launcher, settings in LAUNCHERS.items():
        for prefix, below in _below(settings):
            section = found.setdefault(below, Section(below, [], []))
            for names, name in ((section.prefixes, prefix), (section.readers, launcher)):
                if name not in names:
                    names.append(name)
    return list(found.values())


def _below(settings: type, prefix: str = "") -> Iterator[tuple[str, type]]:
    """The sections of some settings and those inside them: dotted prefix, dataclass."""
    for field in dataclasses.fields(settings):
        below = _section_of(settings, field.name)
        if below is not None:
            yield f"{prefix}{field.name}", below
            yield from _below(below, f"{prefix}{field.name}.")


def _section_of(settings: type, name: str) -> type | None:
    """The dataclass that a field holds, or may hold; None: it holds a value."""
    hint = typing.get_type_hints(settings)[name]
    if typing.get_origin(hint) is tuple:  # a list of them
        return None
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type)]
    return next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)


def _overview(launcher: str, settings: type) -> str:
    names = [field.name for field in dataclasses.fields(settings)]
    sections = [f"`{name}`" for name in names if _section_of(settings, name) is not None]
    own = [f"`{name}`" for name in names if _section_of(settings, name) is None]
    return f"| `launchers/{launcher}.py` | {', '.join(own)} | {', '.join(sections)} |"


def _page(title: str, about: str, settings: type, prefix: str) -> str:
    head = ["| setting | type | default | range | meaning |", "|---|---|---|---|---|"]
    return "\n".join([f"## {title}", "", about, "", *head, *_rows(settings, prefix)]) + "\n"


def _rows(settings: Any, prefix: str) -> Iterator[str]:
    docs, hints = _attribute_docs(settings), typing.get_type_hints(settings)
    entries = dict(listed_settings(settings))
    for field in dataclasses.fields(settings):
        if _section_of(settings, field.name) is None:
            cells = (_type(hints[field.name]), _default(field), _range(field), docs.get(field.name, ""))
            yield f"| `{prefix}{field.name}` | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
        if field.name in entries:
            yield from _rows(entries[field.name], f"{prefix}{field.name}[].")


def _type(hint: Any) -> str:
    """As YAML has it: the choices of a Literal, lists for tuples; None goes without saying where it is the default."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is tuple:
        inner = _type(arguments[0])
        return f"list of {inner}" if arguments[-1] is Ellipsis else f"list of {len(arguments)} {inner}"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "mapping"
    if arguments:
        return " or ".join(_type(kind) for kind in arguments if kind is not NoneType)
    return str(hint.__name__)


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = list(field.default) if isinstance(field.default, tuple) else field.default
        return "none" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"
    return "`{}`" if field.default_factory is not dataclasses.MISSING else "required"


def _range(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get(SHARE):
        return "0 to 1"
    return f"{field.metadata[LEAST]} or more" if LEAST in field.metadata else ""


def _summary(settings: type) -> str:
    return " ".join((settings.__doc__ or "").split("\n\n")[0].split())


def _attribute_docs(settings: type) -> dict[str, str]:
    """The string below each field of a dataclass and of its base classes, as one line."""
    docs: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, below in zip(tree.body, tree.body[1:], strict=False):
            text = below.value.value if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) else None
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, str):
                docs[field.target.id] = " ".join(text.split())
    return docs


if __name__ == "__main__":
    print(reference(), end="")
