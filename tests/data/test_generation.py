"""What the generative stage shows and asks for: tasks, corrupted titles, and how both are laid out."""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from mbsd.batch import NO_WORD, Generation
from mbsd.catalog.reader import Catalog
from mbsd.config.data import DataConfig
from mbsd.config.stages import GenerativeConfig
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_torchvision import TorchvisionDecoder
from mbsd.data.generation import infill
from mbsd.data.room import largest_batch
from mbsd.data.samples import Sample
from mbsd.data.spec import BatchSpec, Generated
from mbsd.data.text import encode_pair
from tests.data.conftest import IMAGE_SIZE, NUM_ITEMS, PATCHES

MASK = 1


def test_spans_are_hidden_behind_one_mask_each() -> None:
    """As many words as asked for; what is left stands in its order; both ends of the share."""
    words = np.arange(100, 140)
    spans = []
    for number in range(200):
        shown = infill(np.random.default_rng(number), words, 0.3, 3.0, MASK)
        left = shown[shown != MASK]
        assert len(left) == 28 and (np.diff(left) > 0).all()
        assert not ((shown[1:] == MASK) & (shown[:-1] == MASK)).any()
        spans.append(12 / (shown == MASK).sum())
    assert 2.5 < np.mean(spans) < 4.5  # spans of three on the mean; some meet, the last one is cut
    rng = np.random.default_rng(0)
    assert infill(rng, words, 0.0, 3.0, MASK).tolist() == words.tolist()
    assert infill(rng, words, 1.0, 3.0, MASK).tolist() == [MASK]
    assert infill(rng, words[:1], 0.3, 3.0, MASK).tolist() == [MASK]
    assert infill(rng, words[:0], 0.3, 3.0, MASK).tolist() == []


def builder_of(catalog: Catalog, tokenizer: PreTrainedTokenizerBase, **prompts: str) -> BatchBuilder:
    data = DataConfig(str(catalog.path), image_size=IMAGE_SIZE, max_text_tokens=24, max_query_tokens=10, num_workers=0)
    target = Generated(GenerativeConfig(captioning=0.5), **prompts)
    spec = BatchSpec(("full",), target, PATCHES, train=True, seed=3)
    return BatchBuilder(catalog, tokenizer, data, spec, TorchvisionDecoder(IMAGE_SIZE))


def test_every_title_is_asked_for_once(catalog: Catalog, tokenizer: PreTrainedTokenizerBase) -> None:
    """Captioned samples show none of it, denoised ones what is left; without a title nothing is asked for."""
    builder = builder_of(catalog, tokenizer, caption_prompt="query 1", denoising_prompt="query")
    samples = [Sample(item) for item in range(NUM_ITEMS)]
    positions = np.arange(NUM_ITEMS)
    batch = builder.build(samples, positions, np.zeros_like(positions))
    asked = batch.generation
    assert asked is not None
    prompts = {True: "query 1", False: "query"}
    starts, shown = asked.cu_seqlens.tolist(), batch.views.cu_seqlens.tolist()
    rows_of_all = torch.arange(len(batch.views.source_T) + len(asked.labels_W))
    tasks = {True: 0, False: 0}
    for item in range(NUM_ITEMS):
        whole = encode_pair(tokenizer, None, catalog.title(item), 24, 10).input_ids.tolist()
        rows = slice(starts[item], starts[item + 1])
        image = bool(batch.has_image[item])
        words = batch.input_ids_N[batch.views.source_T[shown[item] : shown[item + 1] - PATCHES * image]].tolist()
        if catalog.title(item):
            assert asked.input_ids_W[rows].tolist() == whole[:-1] and asked.labels_W[rows].tolist() == whole[1:]
            assert asked.position_ids_W[rows].tolist() == list(range(len(whole) - 1))
            (captioned,) = set(asked.captioned_W[rows].tolist())
            tasks[captioned] += len(whole) - 1
            first = encode_pair(tokenizer, prompts[captioned], "", 24, 10).input_ids.tolist()
            assert words[: len(first)] == first
            left = [word for word in words[len(first) : -1] if word != tokenizer.mask_token_id]
            if captioned:
                assert image and words == first
            else:
                assert words[-1] == tokenizer.sep_token_id and len(left) == len(whole) - 2 - max(
                    1, round(0.3 * (len(whole) - 2))
                )
        else:
            assert asked.lengths[item] == 1 and asked.labels_W[rows].tolist() == [NO_WORD]
        joined = asked.joined[asked.joined_cu_seqlens[item] : asked.joined_cu_seqlens[item + 1]]
        own = torch.cat([rows_of_all[shown[item] : shown[item + 1]], len(batch.views.source_T) + rows_of_all[rows]])
        assert torch.equal(joined, own)
    assert (asked.num_captioned, asked.num_denoised) == (tasks[True], tasks[False])
    assert min(tasks.values()) > 0.25 * sum(tasks.values())
    sizes: list[int] = []
    batch.map_tensors(lambda tensor: sizes.append(tensor.nbytes))
    assert sum(sizes) <= largest_batch(builder, NUM_ITEMS)


def test_a_sample_is_asked_the_same_whatever_stands_beside_it(
    catalog: Catalog, tokenizer: PreTrainedTokenizerBase
) -> None:
    builder = builder_of(catalog, tokenizer)
    samples, positions = [Sample(item) for item in range(8)], np.arange(8)

    def asked(rows: slice, epoch: int) -> list[Generation | None]:
        part = positions[rows]
        batches = [builder.build([samples[n]], part[i : i + 1], np.array([epoch])) for i, n in enumerate(part)]
        return [batch.generation for batch in batches]

    whole = builder.build(samples, positions, np.zeros_like(positions)).generation
    assert whole is not None
    alone = asked(slice(0, 8), 0)
    labels = torch.cat([one.labels_W for one in alone if one is not None])
    captioned = torch.cat([one.captioned_W for one in alone if one is not None])
    assert torch.equal(labels, whole.labels_W) and torch.equal(captioned, whole.captioned_W)
    later = torch.cat([one.captioned_W for one in asked(slice(0, 8), 1) if one is not None])
    assert not torch.equal(later, captioned)
