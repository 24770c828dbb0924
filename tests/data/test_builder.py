from __future__ import annotations

import copy
import dataclasses
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers import PreTrainedTokenizerBase

from mbsd.batch import VIEW_NAMES
from mbsd.catalog.reader import Catalog
from mbsd.catalog.tables import Kind, Table, write_table
from mbsd.config.data import DataConfig
from mbsd.config.stages import MaskingConfig
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_torchvision import TorchvisionDecoder
from mbsd.data.samples import CatalogSamples, Sample, TableSamples
from mbsd.data.spec import BatchSpec
from mbsd.data.text import encode_pair
from tests.data.conftest import DECODERS, IMAGE_SIZE, NUM_ITEMS, PATCHES, MakeBuilder, tensors_of


def build(builder: BatchBuilder, samples: list[Sample], epoch: int = 0) -> Any:
    n = len(samples)
    return builder.build(samples, np.arange(n), np.full(n, epoch))


@pytest.mark.parametrize("image_cls", [False, True])
def test_a_masked_batch_against_the_uncorrupted_one(
    make_builder: MakeBuilder, tokenizer: PreTrainedTokenizerBase, image_cls: bool
) -> None:
    samples = [Sample(item) for item in range(NUM_ITEMS)]
    clean = build(make_builder(image_cls=image_cls), samples)
    masking = MaskingConfig(mlm_probability=0.4, mpm_corruption="bert")
    batch = build(make_builder(masking=masking, image_cls=image_cls), samples)
    masks, source = batch.masks, batch.views.source_T
    images, num_tokens = batch.images.shape[0], len(batch.input_ids_N)
    assert clean.masks is None
    assert torch.equal(clean.images, batch.images) and torch.equal(clean.views.source_T, source)
    # Words: the packed row reads a text row; its label is the word that stood there, never a special one.
    rows = source[masks.mlm_index_K]
    assert len(rows) > 20 and rows.max() < num_tokens
    assert torch.equal(clean.input_ids_N[rows], masks.mlm_labels_K)
    assert not set(masks.mlm_labels_K.tolist()) & set(tokenizer.all_special_ids)
    changed = (clean.input_ids_N != batch.input_ids_N).nonzero().flatten()
    assert set(changed.tolist()) <= set(rows.tolist())
    # Patches: the packed row reads just the patch whose pixels are asked for.
    patches = PATCHES + image_cls
    assert len(masks.mpm_index_Q) == images * 2
    assert masks.patch_source.shape == (images * PATCHES,)
    image, place = masks.mpm_patch_Q // PATCHES, masks.mpm_patch_Q % PATCHES
    assert torch.equal(source[masks.mpm_index_Q], num_tokens + image * patches + place + int(image_cls))
    # Only masked patches are replaced, by the mask vector or by a patch of the same image.
    own = torch.arange(images * PATCHES)
    moved = (masks.patch_source != own).nonzero().flatten()
    assert len(moved) > images and set(moved.tolist()) <= set(masks.mpm_patch_Q.tolist())
    swapped = moved[masks.patch_source[moved] < images * PATCHES]
    assert torch.equal(masks.patch_source[swapped] // PATCHES, swapped // PATCHES)


def test_masks_and_crops_follow_epoch_position_and_seed_alone(make_builder: MakeBuilder) -> None:
    builder = make_builder(masking=MaskingConfig())
    samples = [Sample(item) for item in (0, 1, 4, 5)]
    whole = build(builder, samples)
    assert tensors_of(whole) == tensors_of(build(builder, samples))
    second = builder.build(samples[2:], np.array([2, 3]), np.array([0, 0]))
    assert torch.equal(second.images, whole.images[2:]), "a sample's pixels do not depend on its neighbours"
    rows = len(second.input_ids_N)
    assert torch.equal(second.input_ids_N, whole.input_ids_N[-rows:])
    later = build(builder, samples, epoch=1)
    assert not torch.equal(later.images, whole.images)
    assert not torch.equal(later.masks.mpm_patch_Q, whole.masks.mpm_patch_Q)


def test_evaluation_shows_the_whole_picture(make_builder: MakeBuilder, catalog: Catalog) -> None:
    batch = build(make_builder(train=False), [Sample(0), Sample(2), Sample(1)])  # item 2 has no picture
    assert not catalog.has_image(2) and batch.images.shape[0] == 2
    for image, item in zip(batch.images, (0, 1), strict=True):
        jpeg = catalog.image(item)
        assert jpeg is not None
        resized = Image.open(io.BytesIO(jpeg)).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
        assert np.abs(image.numpy() - np.asarray(resized).transpose(2, 0, 1).astype(float)).mean() <= 2


def test_pairs_in_three_views(
    make_builder: MakeBuilder, pairs: Table, catalog: Catalog, tokenizer: PreTrainedTokenizerBase
) -> None:
    table = TableSamples(pairs, "train")
    samples = [table[i] for i in range(len(table))]
    assert len(samples) == 23 and samples[5] == Sample(15, "query 1 红色 dress", 1)
    batch = build(make_builder(("full", "text", "image"), label_dtype=torch.float32), samples)
    assert batch.labels_B is not None and batch.labels_B.dtype == torch.float32
    assert batch.labels_B.tolist() == [float(s.label or 0) for s in samples]
    assert batch.items_B.tolist() == [s.item for s in samples]
    ids = batch.input_ids_N.tolist()
    streams = ids + [-1] * (batch.images.shape[0] * PATCHES)
    shown = [streams[row] for row in batch.views.source_T.tolist()]
    cu = batch.views.cu_seqlens.tolist()
    for s, sample in enumerate(samples * 3):
        view = batch.views.names[s // len(samples)]
        text = encode_pair(tokenizer, sample.text, catalog.title(sample.item), 24, 10)
        words = text.input_ids.tolist()[: text.num_query if view == "image" else None]
        image = [-1] * PATCHES * (view != "text" and catalog.has_image(sample.item))
        assert shown[cu[s] : cu[s + 1]] == words + image


def test_the_text_view_alone_reads_no_picture(make_builder: MakeBuilder) -> None:
    batch = build(make_builder(("text",)), [Sample(0), Sample(1)])
    assert batch.images.shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE) and batch.images.dtype == torch.uint8
    assert batch.views.source_T.max() == len(batch.input_ids_N) - 1


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("image_cls", [False, True])
def test_a_bucket_fills_up_what_is_there_anyhow(make_builder: MakeBuilder, decoder: str, image_cls: bool) -> None:
    """The same rows, pictures and masks come first; an evaluation's batches are left as they are."""
    samples = [Sample(item) for item in (0, 2, 5, 7)]  # the second and the fourth have no picture
    common = {"decoder": decoder, "image_cls": image_cls, "masking": MaskingConfig(mlm_probability=0.4)}
    plain = build(make_builder(**common), samples)
    full = build(make_builder(**common, token_bucket=32), samples)
    tokens, rows, images = plain.num_tokens, len(plain.input_ids_N), len(plain.images)
    assert images < len(full.images) == 4 and torch.equal(full.images[:images], plain.images)
    assert not full.images[images:].any()
    assert len(full.input_ids_N) % 32 == 0 and len(full.views.source_T) % 32 == 0
    assert full.num_tokens == tokens and full.views.real_lengths == plain.views.lengths
    assert torch.equal(full.input_ids_N[:rows], plain.input_ids_N)
    is_text = plain.views.source_T < rows
    moved = torch.where(is_text, plain.views.source_T, plain.views.source_T + len(full.input_ids_N) - rows)
    assert torch.equal(full.views.source_T[:tokens], moved)
    for name, count in (("num_words", "mlm_labels_K"), ("num_patches", "mpm_patch_Q")):
        asked = getattr(plain.masks, name)
        assert asked == getattr(full.masks, name) == len(getattr(plain.masks, count))
        assert torch.equal(getattr(full.masks, count)[:asked], getattr(plain.masks, count))
        assert (getattr(full.masks, count)[asked:] < 0).all()
    assert len(full.masks.patch_source) == 4 * PATCHES
    held_out = [build(make_builder(**common, train=False, token_bucket=n), samples) for n in (1, 32)]
    assert tensors_of(held_out[0]) == tensors_of(held_out[1])


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_batch_without_any_picture(make_builder: MakeBuilder, decoder: str) -> None:
    batch = build(make_builder(masking=MaskingConfig(), decoder=decoder), [Sample(2), Sample(7)])
    assert batch.images.shape == (0, 3, IMAGE_SIZE, IMAGE_SIZE) and batch.images.dtype == torch.uint8
    assert batch.masks is not None
    assert batch.masks.mpm_index_Q.shape == batch.masks.patch_source.shape == (0,)


def test_what_does_not_fit_together_is_refused(
    make_builder: MakeBuilder, catalog: Catalog, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ValueError, match="masked patches need the view full or image"):
        make_builder(("text",), masking=MaskingConfig())
    with pytest.raises(ValueError, match="32 px"):
        data = DataConfig("x", image_size=64)
        BatchBuilder(catalog, tokenizer, data, BatchSpec(("full",), None, 4), TorchvisionDecoder(32))
    with pytest.raises(ValueError, match="a label is asked for"):
        build(make_builder(label_dtype=torch.int64), [Sample(0)])

    with pytest.raises(ValueError, match="1 of 2 samples have a second item"):
        build(make_builder(), [Sample(0), Sample(1, other=2)])


@pytest.mark.parametrize("bucket", [1, 32])
def test_whole_titles_and_pictures_are_asked_of_items_that_have_both(
    make_builder: MakeBuilder, catalog: Catalog, tokenizer: PreTrainedTokenizerBase, bucket: int
) -> None:
    """The words are those of before masking, each once; the picture is the sample's own."""
    masking = MaskingConfig(mlm_probability=0.9, cross_modal=True)
    builder = make_builder(VIEW_NAMES, masking=masking, token_bucket=bucket)
    items = [3, 4, 5, 2, 7, 40, 10]  # 3 and 10 have no title, 2 and 7 no picture
    batch = build(builder, [Sample(item) for item in items])
    asked = batch.cross_modal
    counts = asked.share_U > 0
    assert counts.all() == (bucket == 1) and len(counts) % bucket == 0
    alone = [build(make_builder(("image",), train=True), [Sample(item)]).images for item in items]
    assert asked.num_asked == asked.asked_B.sum() == 3
    for b, item in enumerate(items):
        title = set(encode_pair(tokenizer, None, catalog.title(item), 24, 10).input_ids.tolist())
        words = title - set(tokenizer.all_special_ids)
        own = counts & (asked.title_U == b)
        both = bool(words) and len(alone[b]) > 0
        assert asked.asked_B[b] == both == (item in (4, 5, 40))
        assert sorted(asked.words_U[own].tolist()) == (sorted(words) if both else [])
        assert not both or asked.share_U[own].sum().item() == pytest.approx(1)
    # Of the third sample, which is the second with a picture: the crop is drawn for its position.
    shown = build(builder, [Sample(item) for item in items[:3]])
    assert torch.equal(batch.images[asked.picture_B[2]], shown.images[shown.cross_modal.picture_B[2]])
    assert asked.picture_B.tolist() == [0, 1, 2, 0, 0, 3, 4]
    plain = build(make_builder(VIEW_NAMES, masking=MaskingConfig(mlm_probability=0.9), token_bucket=bucket), [
        Sample(item) for item in items
    ])  # fmt: skip
    assert plain.cross_modal is None and tensors_of(dataclasses.replace(batch, cross_modal=None)) == tensors_of(plain)


def test_rows_of_every_kind_of_table_become_samples(make_builder: MakeBuilder, catalog: Catalog, pairs: Table) -> None:
    columns: dict[Kind, dict[str, list[object]]] = {
        "attributes": {"text": ["colour:red"], "item": [3], "label": [1], "attribute": ["colour"], "where": ["both"]},
        "categories": {"item": [5], "label": [0], "category": ["dress"]},
        "alignment": {"item_a": [4, 9], "item_b": [8, 2], "label": [1, 0]},
    }
    expected = {
        "attributes": [Sample(3, "colour:red", 1)],
        "categories": [Sample(5, None, 0)],
        "alignment": [Sample(4, None, 1, other=8), Sample(9, None, 0, other=2)],
    }
    for kind, rows in columns.items():
        out = catalog.path.parent / f"{kind}.parquet"
        write_table(kind, pa.table({**rows, "split": ["train"] * len(rows["label"])}), catalog, out)
        samples = TableSamples(Table(out, catalog))
        assert [samples[row] for row in range(len(samples))] == expected[kind]
    first = TableSamples(pairs)[0]
    assert (first.item, first.text, first.label, first.other) == (0, "query 0 红色 dress", 0, None)


def test_both_items_of_an_alignment_row_are_in_the_batch_and_drawn_apart(make_builder: MakeBuilder) -> None:
    builder = make_builder(label_dtype=torch.float32)
    batch = build(builder, [Sample(4, None, 1, other=8), Sample(9, None, 0, other=4)])
    assert batch.items_B.tolist() == [4, 9, 8, 4] and batch.labels_B.tolist() == [1.0, 0.0]
    assert len(batch.views.lengths) == 4
    ids = batch.input_ids_N.split([batch.views.lengths[s] - PATCHES for s in range(4)])
    assert torch.equal(ids[0], ids[3]), "one item, one text"
    alone = build(builder, [Sample(4, None, 1)])
    assert torch.equal(alone.images[0], batch.images[0]), "the first item is what it would be alone"
    # Item 4 is the first of row 0 and the second of row 1: two draws of crop and mirroring.
    assert not torch.equal(batch.images[0], batch.images[3])


def test_a_damaged_picture_is_left_out_and_named(catalog: Catalog, make_builder: MakeBuilder, tmp_path: Path) -> None:
    other = tmp_path / "catalog"
    shutil.copytree(catalog.path, other)
    offset = int(catalog.table()["offset"][0].as_py())
    with (other / "shards" / "000000.tar").open("r+b") as file:
        file.seek(offset + 200)
        byte = file.read(1)[0]
        file.seek(offset + 200)
        file.write(bytes([byte ^ 1]))
    builder = make_builder(train=False)
    whole = builder.prepare([Sample(0), Sample(1)], np.arange(2), np.zeros(2, np.int64))
    builder = copy_of(builder, source=Catalog(other))
    damaged = builder.prepare([Sample(0), Sample(1)], np.arange(2), np.zeros(2, np.int64))
    assert (whole.num_read, whole.damaged) == (2, ())
    assert damaged.num_read == 2
    assert len(damaged.damaged) == 1 and "000000.tar, item 0" in damaged.damaged[0]
    # The other picture is untouched, and the item is still there by its title.
    assert torch.equal(damaged.batch.images, whole.batch.images[1:])
    assert torch.equal(damaged.batch.input_ids_N, whole.batch.input_ids_N)
    assert whole.batch.has_image.tolist() == [True, True] and damaged.batch.has_image.tolist() == [False, True]
    assert damaged.batch.views.lengths[0] == whole.batch.views.lengths[0] - PATCHES


def copy_of(builder: BatchBuilder, **changes: object) -> BatchBuilder:
    other = copy.copy(builder)
    vars(other).update(changes)
    return other


def test_catalog_samples_are_the_items_of_a_split(catalog: Catalog) -> None:
    splits = [CatalogSamples(catalog, split) for split in ("train", "validation", "test")]
    items = [samples[i] for samples in splits for i in range(len(samples))]
    assert sorted(sample.item for sample in items) == list(range(NUM_ITEMS))
    assert all(sample.text is None and sample.label is None for sample in items)


def test_rows_of_an_item_share_its_picture_and_nothing_else_changes(make_builder: MakeBuilder) -> None:
    rows = [
        Sample(0, text="red"),
        Sample(4, text="shoe"),
        Sample(0, text="blue"),
        Sample(0, hidden=frozenset({"image"})),
    ]
    views = ("full", "text", "image")
    apart, shared = (build(make_builder(views, share_images=share), rows) for share in (False, True))
    assert [len(batch.images) for batch in (apart, shared)] == [3, 2]
    assert torch.equal(apart.input_ids_N, shared.input_ids_N) and torch.equal(apart.has_image, shared.has_image)
    assert apart.views.lengths == shared.views.lengths
    # The patches that each row of the first reads are those that the same row of the second reads, of its own picture.
    words, read = len(shared.input_ids_N), {0: 0, 1: 1, 2: 0}
    source, expected = shared.views.source_T, apart.views.source_T.clone()
    is_patch = expected >= words
    image, patch = (expected[is_patch] - words) // PATCHES, (expected[is_patch] - words) % PATCHES
    expected[is_patch] = words + torch.tensor([read[i] for i in image.tolist()]) * PATCHES + patch
    assert torch.equal(source, expected)


def test_a_shared_crop_follows_the_epoch_and_the_item_alone(make_builder: MakeBuilder) -> None:
    builder = make_builder(share_images=True)
    rows = [Sample(0, text="red"), Sample(4, text="shoe"), Sample(0, text="blue")]
    whole = build(builder, rows)
    alone = builder.build(rows[2:], np.array([2]), np.array([0]))
    both_epochs = builder.build(rows[:1] * 2, np.array([0, 0]), np.array([0, 1]))
    assert torch.equal(alone.images[0], whole.images[0])
    assert torch.equal(both_epochs.images[0], whole.images[0])
    assert len(both_epochs.images) == 2 and not torch.equal(both_epochs.images[1], whole.images[0])


def test_what_is_scored_shows_every_row_its_picture(make_builder: MakeBuilder) -> None:
    rows = [Sample(0, text="red"), Sample(0, text="blue")]
    assert len(build(make_builder(train=False, share_images=True), rows).images) == 2


def test_masks_do_not_go_with_shared_pictures(make_builder: MakeBuilder) -> None:
    with pytest.raises(ValueError, match="share_images"):
        make_builder(masking=MaskingConfig(), share_images=True)
