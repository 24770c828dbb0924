"""Catalogue → batches: what the generative stage shows of a sample, and the title that it asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedTokenizerBase

from mbsd.batch import NO_WORD, Generation, Views
from mbsd.data.spec import Generated
from mbsd.data.text import encode_pair
from mbsd.data.views import TextTokens

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Asked:
    """One sample of the generative stage.

    Attributes:
        shown: its text in the view full.
        words: int64 [n]; the title to write, without special tokens.
        captioned: whether `shown` has no word of it.
    """

    shown: TextTokens
    words: Int64
    captioned: bool


class TitleAsker:
    """Draws which of the two tasks a sample is given, and corrupts its title.

    Args:
        target: of the batches.
        max_text_tokens, max_query_tokens: of the data settings.
    """

    def __init__(
        self, target: Generated, tokenizer: PreTrainedTokenizerBase, max_text_tokens: int, max_query_tokens: int
    ) -> None:
        self.settings, self.max_text_tokens = target.settings, max_text_tokens
        self.cls_id, self.sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.mask_id = tokenizer.mask_token_id
        self.prompts = [
            encode_pair(tokenizer, prompt, "", max_text_tokens, max_query_tokens).input_ids if prompt else None
            for prompt in (target.denoising_prompt, target.caption_prompt)
        ]

    def ask(self, rng: np.random.Generator, text: TextTokens, has_image: bool) -> Asked:
        """What a sample shows and is asked for.

        Args:
            rng: of this sample.
            text: `[CLS] title [SEP]`.
            has_image: without a picture it is denoised.
        """
        words = text.input_ids[1:-1]
        captioned = bool(rng.random() < self.settings.captioning) and has_image
        kept = words[:0] if captioned else infill(rng, words, self.settings.noise, self.settings.span, self.mask_id)
        prompt = self.prompts[captioned]
        first = np.array([self.cls_id]) if prompt is None else prompt
        second = kept[: self.max_text_tokens - len(first) - 1]
        if prompt is None or len(second):
            second = np.append(second, self.sep_id)
        ids = np.concatenate([first, second]).astype(np.int64)
        types = np.zeros(len(ids), dtype=np.int64)
        types[len(first) :] = int(prompt is not None)
        return Asked(TextTokens(ids, types, 0 if prompt is None else len(first)), words, captioned)

    def lay_out(self, asked: Sequence[Asked], views: Views) -> Generation:
        """The titles to write, beside the plan of what is shown (the view full alone)."""
        lengths = [len(sample.words) + 1 for sample in asked]
        starts_W, starts_J = _offsets(lengths), _offsets(np.add(views.lengths, lengths).tolist())
        num_shown, shown_starts = sum(views.lengths), _offsets(views.lengths)
        joined: list[Int64] = []
        for b in range(len(asked)):
            joined.append(np.arange(shown_starts[b], shown_starts[b + 1]))
            joined.append(num_shown + np.arange(starts_W[b], starts_W[b + 1]))
        # A sample without a title has a token that asks for nothing: kernels take no empty sequence.
        follows = [np.append(s.words, self.sep_id) if len(s.words) else np.array([NO_WORD]) for s in asked]
        num_asked = [length if len(sample.words) else 0 for length, sample in zip(lengths, asked, strict=True)]
        captioned = sum(count for count, sample in zip(num_asked, asked, strict=True) if sample.captioned)
        return Generation(
            input_ids_W=_rows([np.append(self.cls_id, sample.words) for sample in asked]),
            position_ids_W=_rows([np.arange(length) for length in lengths]),
            labels_W=_rows(follows),
            captioned_W=torch.from_numpy(np.repeat([sample.captioned for sample in asked], lengths)),
            cu_seqlens=torch.from_numpy(starts_W.astype(np.int32)),
            joined=_rows(joined),
            joined_cu_seqlens=torch.from_numpy(starts_J.astype(np.int32)),
            lengths=tuple(lengths),
            num_captioned=captioned,
            num_denoised=sum(num_asked) - captioned,
        )


def infill(rng: np.random.Generator, words: Int64, share: float, span: float, mask_id: int) -> Int64:
    """Text infilling (Lewis et al. 2020, BART): spans of words are hidden, and one mask stands for each.

    Spans begin anywhere and have 1 + Poisson(span - 1) words; those that meet become one. round(share * n) of the n
    words are hidden, one at least where share is above 0.

    Args:
        rng: of this sample.
        words: int64 [n].
        share: of the words that are hidden.
        span: mean number of words in a span.
        mask_id: of [MASK].

    Returns:
        int64 [m], m <= n: the words that are left, and the masks.
    """
    wanted = max(round(share * len(words)), int(share > 0))
    hidden = np.zeros(len(words), dtype=bool)
    for start, length in zip(rng.permutation(len(words)), 1 + rng.poisson(span - 1, len(words)), strict=True):
        left = wanted - int(hidden.sum())
        if left <= 0:
            break
        hidden[start : start + min(int(length), left)] = True
    first = hidden & ~np.concatenate([[False], hidden[:-1]])
    shown: Int64 = np.where(hidden, mask_id, words)[first | ~hidden].astype(np.int64)
    return shown


def _offsets(lengths: Sequence[int]) -> Int64:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def _rows(parts: Sequence[Int64]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
