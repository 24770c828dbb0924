"""The recipe's rules, and minutes that become steps, by arithmetic alone."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mbsd.config.parse import parse
from mbsd.config.run import FinetuneConfig, PretrainConfig
from mbsd.data.order import Order
from mbsd.errors import UserError
from mbsd.model.fresh import fresh_config
from mbsd.model.mbsd import MbsdModel
from mbsd.tools.studies.commands import ROOT
from mbsd.tools.studies.trial import recipe as rules
from mbsd.tools.studies.trial.commands import VALIDATIONS, options, start_words, training
from mbsd.tools.studies.trial.measure import has_bf16
from mbsd.tools.studies.trial.plan import Speeds, Work, left_for_training, lengths_within, makespan, works
from mbsd.tools.studies.trial.recipe import CatalogFacts, Kind, Machine, recipe, with_text_model
from mbsd.tools.studies.trial.run import write_run_deepspeed
from mbsd.tools.studies.trial.settings import Run, Trial, runs_of
from tests.model.reference import VOCABULARY, hand_batch, random_samples

TEST = {"stage1": 1800, "classification": 1800, "attributes": 18_000}
POOL = CatalogFacts(18_000, 65, {"stage1": 14_400, "classification": 14_000, "attributes": 140_000}, TEST)
SPEEDS = Speeds(start=15.0, step={"stage1": 0.1, "classification": 0.12, "attributes": 0.14}, row=0.002)
TWO = Machine(2, 1, "fp32")
BOTH = ("pretrained", "scratch")


def trial(**more: object) -> Trial:
    return replace(Trial("items.jsonl", "images"), **more)  # type: ignore[arg-type]


def test_a_larger_budget_is_never_a_smaller_model() -> None:
    models = [recipe(POOL, TWO, minutes, 2).runs["attributes"].model for minutes in (5, 60, 600, 6000)]
    sizes = [model["model.num_hidden_layers"] * model["model.hidden_size"] for model in models]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def layers(machine: Machine, minutes: float, asked: Trial) -> int:
    model = recipe(POOL, machine, minutes, asked.chains).runs["classification"].model
    return int(model["model.num_hidden_layers"])


def test_cores_beyond_the_chains_become_threads_of_them() -> None:
    one, three = trial(), trial(seeds=(0, 1, 2))
    assert (one.chains, three.chains, trial(starts=BOTH, label_shares=(1.0, 0.1)).chains) == (2, 6, 8)
    many = Machine(32, 1, "fp32")
    assert (TWO.jobs(one.chains), many.jobs(one.chains), many.jobs(three.chains)) == (2, 2, 6)
    assert Machine(32, 8, "fp32").jobs(three.chains) == 4 and Machine(2, 4, "fp32").jobs(one.chains) == 1
    for asked, threads in ((one, 16), (three, 5)):
        assert many.cores_of_chain(asked.chains) == threads
    assert TWO.cores_of_chain(three.chains) == pytest.approx(1 / 3)


def test_the_size_goes_by_what_a_chain_has_of_the_cores() -> None:
    one, three, many = trial(), trial(seeds=(0, 1, 2)), Machine(32, 1, "fp32")
    assert (layers(TWO, 60, one), layers(TWO, 15, one), layers(TWO, 14, one)) == (4, 4, 2)
    assert layers(many, 60, one) == 6, "16 threads for each of two chains"
    assert layers(many, 60, three) == 4, "5 threads for each of six"
    assert layers(TWO, 30, three) == 2, "a third of a core for each"


def test_the_batch_is_whole_on_any_number_of_ranks() -> None:
    for ranks in (1, 2, 3, 5):
        for kind, run in recipe(POOL, Machine(8, ranks, "fp32"), 60, 2).runs.items():
            assert run.batch_size % ranks == 0 and rules.BATCH[kind] <= run.batch_size < rules.BATCH[kind] + ranks


def test_precision_chooses_the_file_of_deepspeed_alone() -> None:
    plain, half = (recipe(POOL, Machine(2, 1, precision), 60, 2) for precision in ("fp32", "bf16"))  # type: ignore[arg-type]
    for kind, run in plain.runs.items():
        other = half.runs[kind]
        assert other.deepspeed == run.deepspeed.replace("cpu_", "cpu_bf16_")
        assert replace(other, deepspeed=run.deepspeed) == run
        assert (ROOT / f"ds_configs/{run.deepspeed}.json").exists()
        assert (ROOT / f"ds_configs/{other.deepspeed}.json").exists()


@pytest.mark.parametrize("items", [500, 18_000, 1_000_000])
@pytest.mark.parametrize("minutes", [1, 60, 3000])
def test_every_recipe_is_one_that_the_launchers_take(items: int, minutes: float) -> None:
    for kind, run in recipe(replace(POOL, items=items), TWO, minutes, 2).runs.items():
        config = PretrainConfig if kind == "stage1" else FinetuneConfig
        words = ["--config", ROOT / f"launchers/configs/{run.config}.yaml", "--deepspeed_config",
                 ROOT / "ds_configs/cpu_finetune.json", *options(run.settings), *start_words(run, None)]  # fmt: skip
        settings, _ = parse(config, list(map(str, words)))  # type: ignore[type-var]
        assert settings.run.init_from is None and settings.model.dropout == 0
        assert settings.model.hidden_size == run.model["model.hidden_size"]
        assert tuple(settings.model.patchify_strides) == (2, 2, 2, 2)
        least = 0.9 if kind == "classification" else 0.8
        assert settings.data.crop_scale == (least, 1.0)


@pytest.mark.parametrize("core_minutes", [least for least, _ in rules.SIZES])
def test_tokens_still_differ_after_the_last_layer_of_a_drawn_model(core_minutes: float) -> None:
    def alike(wider: float) -> float:
        """Mean cosine of two tokens of a sequence."""
        run = recipe(POOL, TWO, core_minutes, 2).runs["stage1"]
        start = run.model | {"model.initializer_range": wider * run.model["model.initializer_range"]}
        words = [*options(run.settings), *options(start), "--model.vocab_size=40"]
        files = ["--config", str(ROOT / f"launchers/configs/{run.config}.yaml"), "--deepspeed_config",
                 str(ROOT / "ds_configs/cpu_finetune.json")]  # fmt: skip
        settings, _ = parse(PretrainConfig, [*files, *words])
        torch.manual_seed(0)
        model = MbsdModel(fresh_config(settings.model, settings.data, VOCABULARY)).eval()
        batch = hand_batch(random_samples([(None, 9, True)] * 8, seed=0), ("full",), model.config)
        with torch.no_grad():
            hidden = F.normalize(model.encode(batch).hidden_TD, dim=-1).view(8, -1, model.config.hidden_size)
        tokens = hidden.shape[1]
        pairs = (hidden @ hidden.transpose(1, 2)).sum() - 8 * tokens
        return float(pairs / (8 * tokens * (tokens - 1)))

    assert alike(1.0) < 0.6
    assert alike(2.0) > 0.8, "what the bound is for: nearly one token"


def test_what_pictures_want_is_of_the_run_on_categories_alone() -> None:
    runs = recipe(POOL, TWO, 60, 2).runs
    its_own = {"optim.image", "task.label_smoothing"}
    assert its_own <= runs["classification"].settings.keys()
    assert not its_own & {*runs["stage1"].settings, *runs["attributes"].settings}
    decays = {kind: run.optimizer["weight_decay"] for kind, run in runs.items()}
    assert decays == {"stage1": 0.05, "classification": 0.2, "attributes": 0.05}


def test_a_text_model_brings_its_sizes_and_its_rate() -> None:
    drawn = recipe(POOL, TWO, 60, 2).runs
    for kind, run in with_text_model(recipe(POOL, TWO, 60, 2), "models/bert").runs.items():
        assert run.learning_rate == 2e-4 <= drawn[kind].learning_rate and run.batch_size == drawn[kind].batch_size
        assert run.model["model.backbone"] == "models/bert"
        assert not {"model.hidden_size", "model.vocab_size", "model.num_hidden_layers"} & run.model.keys()
        assert run.settings.get("model.head_range") == (None if kind == "stage1" else 0.02)


@pytest.mark.parametrize("kind", ["stage1", "classification", "attributes"])
def test_the_small_files_say_what_the_recipe_says_of_an_hour(kind: Kind, tmp_path: Path) -> None:
    run = recipe(POOL, TWO, 60, 2).runs[kind]
    own = ["--config", str(ROOT / f"launchers/configs/small_{kind}.yaml"), "--deepspeed_config",
           str(ROOT / f"ds_configs/cpu_small_{kind}.json")]  # fmt: skip
    config = PretrainConfig if kind == "stage1" else FinetuneConfig
    shipped, shipped_ds = parse(config, own)  # type: ignore[type-var]
    start = start_words(run, None if kind == "stage1" else Path(str(shipped.run.init_from)))
    asked, _ = parse(config, [*own, *map(str, options(run.settings)), *map(str, start)])  # type: ignore[type-var]
    assert asked == shipped
    write_run_deepspeed(tmp_path / "ds.json", run)
    assert json.loads((tmp_path / "ds.json").read_text()) == shipped_ds.tree


def test_bf16_is_told_by_the_cpus_flags() -> None:
    assert has_bf16("flags\t: fpu avx512f avx512_bf16 sha_ni\n") and has_bf16("flags\t: amx_bf16 fpu\n")
    assert not has_bf16("flags\t: fpu avx512f avx2\nmodel name: no avx512_bf16x\n")


def test_makespan() -> None:
    alone = [Work("a", 3, ()), Work("b", 2, ()), Work("c", 1, ())]
    assert makespan(alone, 1) == 6 and makespan(alone, 2) == 3 and makespan(alone, 9) == 3
    chain = [Work("a", 3, ()), Work("b", 2, ("a",)), Work("c", 4, ())]
    assert makespan(chain, 1) == 9 and makespan(chain, 2) == 5
    assert makespan([], 2) == 0


@pytest.mark.parametrize("jobs", [1, 2, 4])
@pytest.mark.parametrize("starts", [("pretrained",), BOTH])
def test_the_steps_fill_the_budget_and_not_more(jobs: int, starts: tuple[str, ...]) -> None:
    asked, chosen = trial(starts=starts), recipe(POOL, TWO, 60, 2)
    before = None
    for minutes in (30, 60, 120):
        lengths, seconds = lengths_within(asked, POOL, chosen, SPEEDS, 60 * minutes, jobs)
        assert seconds <= 60 * minutes * (1 - rules.RESERVE)
        if minutes == 30 and jobs < 4:
            assert seconds > 0.9 * 60 * minutes, "nothing is at its most epochs"
        assert seconds == makespan(works(asked, POOL, SPEEDS, lengths), jobs)
        assert before is None or all(lengths.steps[kind] >= before.steps[kind] for kind in lengths.steps)
        before = lengths


def test_time_is_shared_as_the_table_says() -> None:
    lengths, _ = lengths_within(trial(), POOL, recipe(POOL, TWO, 60, 2), SPEEDS, 1800, 2)
    spent = {kind: lengths.steps[kind] * SPEEDS.step[kind] for kind in lengths.steps}
    for one, other in itertools.combinations(spent, 2):
        expected = rules.SHARES[one] / rules.SHARES[other]  # type: ignore[index]
        assert spent[one] / spent[other] == pytest.approx(expected, rel=0.01)


def test_a_small_shop_ends_before_its_budget() -> None:
    facts = CatalogFacts(800, 9, {kind: 600 for kind in TEST}, {kind: 100 for kind in TEST})
    chosen = recipe(facts, TWO, 600, 2)
    lengths, seconds = lengths_within(trial(), facts, chosen, SPEEDS, 36_000, 2)
    for kind, run in chosen.runs.items():
        assert lengths.steps[kind] == int(run.most_epochs * 600 / run.batch_size)
    assert seconds < 18_000


def test_a_budget_that_is_too_small_is_told() -> None:
    lengths, seconds = lengths_within(trial(), POOL, recipe(POOL, TWO, 1, 2), SPEEDS, 30, 2)
    assert set(lengths.steps.values()) == {20} and seconds > 30


def test_from_scratch_trains_for_as_long_in_all() -> None:
    asked = trial(starts=BOTH, equal_time=True, label_shares=(1.0, 0.1), seeds=(0, 1))
    lengths, _ = lengths_within(asked, POOL, recipe(POOL, TWO, 60, 2), SPEEDS, 7200, 2)
    runs = list(runs_of(asked))
    assert len({run.name for run in runs}) == len(runs) == 2 * (2 + 2 * 2 * 2 * 2)

    def seconds(run: Run) -> float:
        before = run.before
        own = lengths.of(run) * SPEEDS.step[run.kind]
        return own + (seconds(before) if before is not None else 0.0)

    for run in runs:
        if run.start == "pretrained":
            assert seconds(replace(run, start="scratch")) == pytest.approx(seconds(run), abs=SPEEDS.step[run.kind])
    some = replace(runs[-1], share=0.1, start="pretrained")
    assert 0 < lengths.of(some) < lengths.of(replace(some, share=1.0))


def test_steps_that_are_named_win_over_the_budget() -> None:
    asked = trial(pretrain_steps=7, finetune_steps=40)
    lengths, _ = lengths_within(asked, POOL, recipe(POOL, TWO, 60, 2), SPEEDS, 3600, 2)
    assert lengths.steps == {"stage1": 7, "classification": 40, "attributes": 40}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label_shares": (0.1, 0.1)}, r"--label-share \[0.1, 0.1\]: name each share once"),
        ({"label_shares": (1.5,)}, "expected shares above 0, up to 1"),
        ({"minutes": 0}, "--minutes 0: expected more than 0"),
        ({"equal_time": True}, r"--worth: .* leave it out, or give SHARES\['stage1'\] .* a share"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        trial(**wrong).check()


def test_training_has_its_part_of_the_budget_however_long_the_tables_took() -> None:
    assert [left_for_training(3600, spent) for spent in (0, 600, 1800, 3000, 9000)] == [3600, 3000, 1800, 1800, 1800]


@pytest.mark.parametrize("steps", [1, 4, 5, 20, 104, 1000, 1001])
def test_a_run_is_validated_as_often_as_the_plan_counts(steps: int) -> None:
    run, shop = Run("plain", "classification", 0, "scratch"), Path("shop")
    words = training(run, shop, recipe(POOL, TWO, 60, 2).runs["classification"], steps, shop / "ds.json").words
    every = words[words.index("--run.validate_every") + 1]
    assert isinstance(every, int) and every > 0
    times = sum(step % every == 0 or step == steps for step in range(1, steps + 1))
    assert times <= VALIDATIONS and (times == VALIDATIONS or steps < VALIDATIONS)


def test_the_tags_of_an_item_come_together_and_show_one_picture() -> None:
    runs = recipe(POOL, TWO, 60, 2).runs
    settings = runs["attributes"].settings
    together = {name: settings[f"data.{name}"] for name in ("share_images", "shuffle_block", "shuffle_window")}
    assert together == {"share_images": True, "shuffle_block": 8, "shuffle_window": 1}
    assert "data.share_images" not in {**runs["stage1"].settings, **runs["classification"].settings}
    # As the loader orders 1,000 items of ten rows each: at most two pictures a run, and some runs of one item alone.
    batch, order = runs["attributes"].batch_size, Order(0, 10_000, settings["data.shuffle_block"], 1)
    pictures = [len(set((order.samples_at(np.arange(n, n + batch)) // 10).tolist())) for n in range(0, 9_000, batch)]
    assert batch == 128 and np.mean(pictures) < 30
