"""Settings: the files that ship parse, overrides win, what is written back reads back the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from mbsd.config.deepspeed import DeepSpeedConfig, precision, zero_stage
from mbsd.config.parse import parse, parse_scoring, to_yaml
from mbsd.config.run import BaseConfig, FinetuneConfig, PretrainConfig
from mbsd.config.scoring import EmbedConfig, EvaluateConfig
from mbsd.errors import UserError
from mbsd.tools.studies.chains import plan
from mbsd.tools.studies.compare.plan import plan as plan_comparison
from mbsd.tools.studies.compare.settings import CompareConfig
from mbsd.tools.studies.launches import check_launches
from mbsd.tools.studies.paper.run import options_of
from mbsd.tools.studies.paper.settings import SCALES
from mbsd.tools.studies.settings import AblationConfig, MissingStudyConfig, StudyConfig
from mbsd.tools.studies.shop import shop_below
from tests.ranks import ROOT
from tests.settings import write_ds_config

CONFIGS = ROOT / "launchers" / "configs"
DS_CONFIGS = ROOT / "ds_configs"
TOGETHER = [
    (PretrainConfig, "stage1", "v100x16_stage1", 16),
    (PretrainConfig, "stage2", "v100x16_stage2", 16),
    (PretrainConfig, "stage1", "h100x8_stage1", 8),
    (PretrainConfig, "stage2", "h100x8_stage2", 8),
    (PretrainConfig, "contrastive", "v100x16_contrastive", 16),
    (PretrainConfig, "contrastive", "h100x8_contrastive", 8),
    (FinetuneConfig, "attributes", "h100_finetune", 1),
    (FinetuneConfig, "attributes", "h100x8_finetune", 8),
    (FinetuneConfig, "alignment", "h100_finetune", 1),
    (FinetuneConfig, "classification", "h100_finetune", 1),
    (FinetuneConfig, "sensitive", "h100_finetune", 1),
    (PretrainConfig, "tiny_stage1", "cpu_stage1", 2),
    (PretrainConfig, "tiny_stage2", "cpu_stage2", 2),
    (FinetuneConfig, "tiny_attributes", "cpu_finetune", 2),
    (FinetuneConfig, "tiny_classification", "cpu_finetune", 2),
    (PretrainConfig, "small_stage1", "cpu_small_stage1", 1),
    (FinetuneConfig, "small_classification", "cpu_small_classification", 1),
    (FinetuneConfig, "small_attributes", "cpu_small_attributes", 1),
    (PretrainConfig, "small_stage2", "cpu_stage2", 2),
    (PretrainConfig, "small_contrastive", "cpu_contrastive", 2),
    (PretrainConfig, "small_generative", "cpu_stage1", 2),
    (FinetuneConfig, "small_alignment", "cpu_finetune", 2),
    (PretrainConfig, "small_stage1", "cpu_bf16_stage1", 2),
    (PretrainConfig, "small_stage2", "cpu_bf16_stage2", 2),
    (FinetuneConfig, "small_classification", "cpu_bf16_finetune", 2),
    (PretrainConfig, "tiny_stage1", "cpu_compare_classes", 1),
    (FinetuneConfig, "tiny_classification", "cpu_compare_classes", 1),
    (FinetuneConfig, "tiny_attributes", "cpu_compare_matching", 2),
    (PretrainConfig, "tiny_stage2", "cpu_compare_matching", 2),
]

STUDIES = {
    "ablation": AblationConfig,
    "small_ablation": AblationConfig,
    "missing": MissingStudyConfig,
    "small_missing": MissingStudyConfig,
    "photos_ablation": AblationConfig,
    "photos_missing": MissingStudyConfig,
}
COMPARISONS = ("compare", "compare_small")


@pytest.mark.parametrize(("kind", "name", "ds_name", "ranks"), TOGETHER)
def test_the_files_that_ship(kind: type[BaseConfig], name: str, ds_name: str, ranks: int) -> None:
    config, ds_config = parse(
        kind, ["--config", str(CONFIGS / f"{name}.yaml"), "--deepspeed_config", str(DS_CONFIGS / f"{ds_name}.json")]
    )
    sizes = ds_config.sizes(ranks)
    assert sizes.micro_batch * sizes.accumulation * ranks == sizes.global_batch == ds_config.tree["train_batch_size"]
    resolved = ds_config.resolved(ranks, total_steps=500)
    assert resolved["scheduler"]["params"]["warmup_num_steps"] == 50
    assert resolved["scheduler"]["params"]["warmup_max_lr"] == resolved["optimizer"]["params"]["lr"]
    assert isinstance(config, kind)
    if ds_name.startswith("cpu_bf16"):  # slices of one or two ranks cost more than the update itself
        assert zero_stage(ds_config.tree) == 0 and precision(ds_config.tree) == "bf16"
        assert ds_config.tree["optimizer"]["type"] == "Lamb" or ds_config.tree["optimizer"]["params"]["fused"] is True
    elif ds_name.startswith("cpu"):
        assert precision(ds_config.tree) == "fp32"
    else:  # what makes the host wait for a GPU in each step, and is needed by nobody
        assert ds_config.tree["timers"]["throughput"] == {"enabled": False}
        assert ds_config.tree.get("bf16", {"check_grad_overflow": False})["check_grad_overflow"] is False


def test_every_shipped_file_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {name for _, name, _, _ in TOGETHER} | {
        "evaluate",
        "embed",
        "retrieval",
        *STUDIES,
        *COMPARISONS,
    }
    assert {path.stem for path in DS_CONFIGS.glob("*.json")} == {name for _, _, name, _ in TOGETHER}
    config = parse_scoring(EvaluateConfig, ["--config", str(CONFIGS / "evaluate.yaml"), "--views=[image]"])
    assert config.views == ("image",) and config.split == "test" and config.task is None
    config = parse_scoring(EvaluateConfig, ["--config", str(CONFIGS / "retrieval.yaml")])
    assert config.task == "retrieval" and config.data.table is None and config.views is None
    embed = parse_scoring(EmbedConfig, ["--config", str(CONFIGS / "embed.yaml")])
    assert embed.view is None and embed.views == ()


def test_a_list_may_be_written_with_commas_alone() -> None:
    words = ["--model=m", "--out=o", "--data.catalog=c"]
    for views in (["--views", "text,image,mean"], ["--views=text,image,mean"], ["--views=[text, image, mean]"]):
        assert parse_scoring(EmbedConfig, [*words, *views]).views == ("text", "image", "mean")
    assert parse_scoring(EmbedConfig, [*words, "--views", "text"]).views == ("text",)
    assert parse_scoring(EmbedConfig, [*words, "--data.crop_scale=0.5,1.0"]).data.crop_scale == (0.5, 1.0)
    for views, said in (
        ("text,text", "names a view twice"),
        ("text,sound", "sound"),
        ("text --view=full", "set one of them"),
    ):
        with pytest.raises(UserError, match=said):
            parse_scoring(EmbedConfig, [*words, *f"--views {views}".split()])


@pytest.mark.parametrize("name", COMPARISONS)
def test_the_comparisons_that_ship(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every launch parses; all models of a comparison are fine-tuned for the same tasks."""
    monkeypatch.chdir(ROOT)
    config = parse_scoring(CompareConfig, ["--config", f"launchers/configs/{name}.yaml"])
    assert config.tables is not None
    launches, cells = plan_comparison(config, config.tables, {})
    check_launches(launches)
    tasks = {model.name: [cell.task for cell in cells if cell.model.name == model.name] for model in config.models}
    assert len({tuple(of_model) for of_model in tasks.values()}) == 1 and all(tasks.values())
    assert {"BERT", "ViT", "ViLT", "FashionBERT", "MBSD"} <= set(tasks)
    assert all(model.pretrain for model in config.models)


@pytest.mark.parametrize("name", SCALES)
def test_the_papers_table_6_is_whole_at_every_scale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    scale = SCALES[name]
    ablation = parse_scoring(AblationConfig, list(options_of(None, *scale.ablation)))
    missing = parse_scoring(MissingStudyConfig, list(options_of(None, *scale.missing)))
    assert ablation.chosen_rows == tuple(range(1, 9)) and not ablation.withheld
    assert (
        set(missing.chosen_rows) == {1, 6} and missing.stage1 == ablation.stage1 and missing.stage2 == ablation.stage2
    )
    assert parse_scoring(CompareConfig, list(options_of(None, scale.compare))).chosen_seeds == (0, 1, 2)


@pytest.mark.parametrize("name", STUDIES)
def test_the_studies_that_ship(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their steps are what their launchers read, and each fine-tuning of a row is another one."""
    monkeypatch.chdir(ROOT)
    kind: type[StudyConfig] = STUDIES[name]
    config = parse_scoring(kind, ["--config", f"launchers/configs/{name}.yaml", f"--out={tmp_path}"])
    shop, evaluations = shop_below(tmp_path) if config.shop else None, {"test": {"views": ["full"]}}
    steps, cells = plan(config, shop, evaluations)
    folders = [cell.folder for cell in cells]
    assert len(set(folders)) == len(folders) == len(steps) - len(folders) - sum(s.launcher == "pretrain" for s in steps)
    if name == "ablation":
        assert len(folders) == 8 * 16, "the paper's sets of hyperparameters"
    for step in steps:
        if step.deepspeed is not None:
            sizes = DeepSpeedConfig(step.deepspeed).sizes(2 if config.shop else 8)
            assert sizes.global_batch == step.deepspeed["train_batch_size"]
    one = dataclasses.replace(config, learning_rates=(0.1,), batch_sizes=(64,), seeds=0)
    steps, _ = plan(one, shop, evaluations)
    yaml_file, json_file = tmp_path / "step.yaml", tmp_path / "step.json"
    for step in steps:
        yaml_file.write_text(yaml.safe_dump(step.config))
        if step.deepspeed is None:
            assert (
                parse_scoring(EvaluateConfig, ["--config", str(yaml_file)]).data.table == step.config["data"]["table"]
            )
            continue
        json_file.write_text(json.dumps(step.deepspeed))
        words = ["--config", str(yaml_file), "--deepspeed_config", str(json_file)]
        read, _ = parse(FinetuneConfig if step.launcher == "finetune" else PretrainConfig, words)
        assert read.run.init_from is None or tmp_path in Path(read.run.init_from).parents


@pytest.mark.parametrize("section", ["bf16", "bfloat16"])
def test_what_waits_for_the_gpu_is_off_unless_it_is_asked_for(section: str) -> None:
    """DeepSpeed has its throughput timer and its search for overflow in bf16 on; a JSON that states one keeps it."""
    batch = {"train_batch_size": 8, "optimizer": {"type": "Lamb"}}
    silent = DeepSpeedConfig({**batch, section: {"enabled": True}})
    resolved = silent.resolved(1, 10)
    assert resolved["timers"] == {"throughput": {"enabled": False}}
    assert resolved["bf16"] == {"enabled": True, "check_grad_overflow": False}
    assert silent.tree[section] == {"enabled": True} and precision(silent.tree) == "bf16"
    asked = {"timers": {"throughput": {"synchronized": False}}, section: {"enabled": True, "check_grad_overflow": True}}
    given = DeepSpeedConfig({**batch, **asked}).resolved(1, 10)
    assert (given["timers"], given["bf16"]) == (asked["timers"], asked[section])
    off = DeepSpeedConfig({**batch, "fp16": {"enabled": True}, section: {"enabled": False}}).resolved(1, 10)
    assert off["fp16"] == {"enabled": True} and off["bf16"] == {"enabled": False}


def test_what_a_run_computes_in() -> None:
    for tree, found in (
        ({}, "fp32"), ({"bfloat16": {"enabled": True}}, "bf16"), ({"bf16": {"enabled": True}}, "bf16"),
        ({"fp16": {"enabled": True}}, "fp16"), ({"fp16": {"enabled": False}, "bf16": {}}, "fp32"),
    ):  # fmt: skip
        assert precision(tree) == found


def test_the_papers_numbers() -> None:
    """LAMB, lr 2e-4, betas (0.9, 0.98), decay 0.01; batches 2,048 and 1,024; 10 and 3 epochs; fp16, ZeRO-2."""
    for stage, batch, epochs in ((1, 2048, 10), (2, 1024, 3)):
        arguments = ["--config", CONFIGS / f"stage{stage}.yaml", "--deepspeed_config"]
        config, given = parse(PretrainConfig, [*map(str, arguments), str(DS_CONFIGS / f"v100x16_stage{stage}.json")])
        ds = given.tree
        assert config.run.epochs == epochs and ds["train_batch_size"] == batch
        assert ds["optimizer"]["type"] == "Lamb" and ds["zero_optimization"]["stage"] == 2 and ds["fp16"]["enabled"]
        params = {"lr": 2e-4, "betas": [0.9, 0.98], "weight_decay": 0.01, "eps": 1e-6}
        assert ds["optimizer"]["params"] == params
        assert ds["scheduler"]["params"]["warmup_type"] == "linear"


def test_overrides_win_and_the_result_reads_back(tmp_path: Path) -> None:
    ds = ["--deepspeed_config", str(write_ds_config(tmp_path))]
    first = ["--config", str(CONFIGS / "small_stage2.yaml"), *ds, "--run.seed=7", "--sdmi.weight=0.5"]
    config, _ = parse(PretrainConfig, [*first, "--data.crop_scale=[0.5, 0.9]", "--local_rank=1"])
    assert (config.run.seed, config.data.crop_scale) == (7, (0.5, 0.9))
    assert config.sdmi is not None and config.sdmi.weight == 0.5 and config.sdmi.variant == "paper"
    written = tmp_path / "config.yaml"
    written.write_text(to_yaml(config))
    assert parse(PretrainConfig, ["--config", str(written), *ds])[0] == config


@pytest.mark.parametrize(
    "wrong",
    ["run.save_every=0", "run.log_every=0", "run.max_steps=0", "run.keep_last=0", "run.validate_samples=-1",
     "run.validate_every=-1", "run.timeout=-1", "data.num_workers=-1", "data.prefetch=0", "data.flip_probability=1.5"],
)  # fmt: skip
def test_numbers_that_cannot_be_meant(wrong: str, tmp_path: Path) -> None:
    ds = ["--deepspeed_config", str(write_ds_config(tmp_path))]
    with pytest.raises(UserError, match=wrong):
        parse(PretrainConfig, ["--config", str(CONFIGS / "small_stage1.yaml"), *ds, f"--{wrong}"])


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [
        ({"train_batch_size": 64}, 2, (64, 32, 1)),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": 8}, 2, (64, 8, 4)),
        ({"train_batch_size": 64, "gradient_accumulation_steps": 4}, 4, (64, 4, 4)),
        ({"train_batch_size": 64, "train_micro_batch_size_per_gpu": "auto"}, 1, (64, 64, 1)),
    ],
)
def test_batch_sizes(given: dict[str, object], ranks: int, expected: tuple[int, int, int]) -> None:
    sizes = DeepSpeedConfig(given).sizes(ranks)
    assert (sizes.global_batch, sizes.micro_batch, sizes.accumulation) == expected


@pytest.mark.parametrize(
    ("more", "said"),
    [([], "only rows of a task table"), (["--data.table=t.parquet", "--data.token_bucket=32"], "every")],
)
def test_shared_pictures_need_a_table_and_unfilled_batches(more: list[str], said: str) -> None:
    words = ["--deepspeed_config=ds_configs/cpu_stage1.json", "--run.dir=r", "--run.max_steps=1", "--data.catalog=c"]
    stage = "--stage=matching" if more else "--stage=masked"
    with pytest.raises(UserError, match=said):
        parse(PretrainConfig, [*words, stage, "--data.share_images=true", *more])
