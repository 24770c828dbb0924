"""The reference of all settings (docs/configuration.md), rendered from the dataclasses that hold them.

`python -m mbsd.tools.reference` prints it; `make docs` writes it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from mbsd.config.data import DataConfig
from mbsd.config.model import ModelConfig
from mbsd.config.ranges import LEAST, SHARE
from mbsd.config.run import BestConfig, PretrainConfig, RunConfig
from mbsd.config.scoring import ClusteringConfig, EmbedConfig, EvaluateConfig, MissingConfig
from mbsd.config.stages import MaskingConfig, SdmiConfig, TaskConfig
from mbsd.tools.studies.commands import LaunchConfig
from mbsd.tools.studies.settings import AblationConfig, MissingStudyConfig, StageConfig
from mbsd.tools.studies.shop import ShopConfig

INTRODUCTION = """\
# Configuration

<!-- Written by `make docs` from the dataclasses in mbsd/config and mbsd/tools/studies. Do not edit. -->

Data, model, objectives and run folder are the YAML that `--config` names; any setting can be overridden on the command
line: `--run.dir runs/x --data.num_workers 8`. Batch size, precision, ZeRO stage, optimizer and schedule are DeepSpeed's
JSON (`--deepspeed_config`), in DeepSpeed's own words, with `"auto"` where the run knows better: `total_num_steps`,
`warmup_num_steps` (a tenth of all steps), `warmup_max_lr` (the optimizer's `lr`), the micro-batch and the accumulation
steps. An unknown key, or the same fact in both files, is an error that names the place.

"""

# Prefix of the settings, their class, who reads them.
SECTIONS: tuple[tuple[str, Any, str], ...] = (
    ("", PretrainConfig, "launchers/pretrain.py, beside `run`, `data`, `model`, `masking` and `sdmi`"),
    ("run", RunConfig, "every training run"),
    ("data", DataConfig, "every launcher that reads a catalogue"),
    ("model", ModelConfig, "every training run"),
    ("masking", MaskingConfig, "launchers/pretrain.py, stage masked"),
    ("sdmi", SdmiConfig, "launchers/pretrain.py, stage matching"),
    ("task", TaskConfig, "launchers/finetune.py"),
    ("best", BestConfig, "launchers/finetune.py"),
    ("", EvaluateConfig, "launchers/evaluate.py, beside `data`"),
    ("missing", MissingConfig, "launchers/evaluate.py"),
    ("clustering", ClusteringConfig, "launchers/evaluate.py, task clustering"),
    ("", EmbedConfig, "launchers/embed.py, beside `data`"),
    ("", AblationConfig, "launchers/ablation.py"),
    ("", MissingStudyConfig, "launchers/missing.py, beside all of launchers/ablation.py"),
    ("stage1, stage2, finetune", StageConfig, "launchers/ablation.py and missing.py"),
    ("shop", ShopConfig, "launchers/ablation.py and missing.py"),
    ("launch", LaunchConfig, "launchers/ablation.py and missing.py"),
)


def reference() -> str:
    """The page as Markdown."""
    return INTRODUCTION + "\n".join(_section(*section) for section in SECTIONS)


def attribute_docs(settings: type) -> dict[str, str]:
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


def _section(prefix: str, settings: Any, readers: str) -> str:
    title = f"`{prefix}`" if prefix else readers.split(",")[0]
    lines = [f"## {title}", "", f"{(settings.__doc__ or '').strip().splitlines()[0]} Read by {readers}.", ""]
    lines += ["| setting | type | default | |", "|---|---|---|---|", *_rows(prefix, settings)]
    return "\n".join(lines) + "\n"


def _rows(prefix: str, settings: Any) -> Iterator[str]:
    docs = attribute_docs(settings)
    inherited = {f.name for f in dataclasses.fields(AblationConfig)} if settings is MissingStudyConfig else set()
    for field in dataclasses.fields(settings):
        if _is_section(field) or (field.name in inherited and field.name != "rows"):
            continue
        name = f"{prefix}.{field.name}" if prefix and "," not in prefix else field.name
        meaning = " ".join(filter(None, [docs.get(field.name, ""), _range(field)]))
        yield f"| `{name}` | `{_escaped(str(field.type))}` | {_default(field)} | {_escaped(meaning)} |"


def _is_section(field: dataclasses.Field[Any]) -> bool:
    """Whether a field is a section of its own, with its own table."""
    sections = {settings.__name__ for _, settings, _ in SECTIONS}
    return bool(sections & set(str(field.type).replace("|", " ").split()))


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        value = list(field.default) if isinstance(field.default, tuple) else field.default
        return f"`{value}`" if value is not None else "none"
    return "`{}`" if field.default_factory is not dataclasses.MISSING else "required"


def _range(field: dataclasses.Field[Any]) -> str:
    if field.metadata.get(SHARE):
        return "From 0 to 1."
    return f"{field.metadata[LEAST]} or more." if LEAST in field.metadata else ""


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
