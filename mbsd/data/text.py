"""Catalogue → batches: words to numbers. Load a BERT tokenizer, or build a WordPiece vocabulary from a catalogue."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import BertTokenizer, PreTrainedTokenizerBase

from mbsd.catalog.queries import normalise_query
from mbsd.data.published import forget_lengths, read_tokenizer, take_off_padding
from mbsd.data.views import TextTokens
from mbsd.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")

_MAX_WORD = 100  # characters; WordPiece makes a longer word [UNK]
_MIN_COUNT = 2  # a piece must occur this often to be worth a row; a character needs no minimum
_INNER = 0x100000  # private-use characters stand for "##" characters while pieces are counted
_MAX_INNER = 0xFFFD


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder (tokenizer.json or vocab.txt) or of a hub name: a BERT's, or a RoBERTa's.

    Its own normalisation is kept. Published ones often pad every text to a length, or cut it, as their tokenizer.json
    says: that is taken off. Batches are packed without padding, and texts are cut at data.max_text_tokens.

    Raises:
        UserError: nothing of that name, no words in it, or one without five special tokens.
    """
    folder = Path(name_or_path)
    if not folder.is_dir() and (folder.is_absolute() or name_or_path.count("/") > 1 or name_or_path.startswith(".")):
        raise UserError(
            f"data.tokenizer={name_or_path}: no such folder; name a folder with a vocab.txt or tokenizer.json"
        )
    # from_pretrained makes an empty vocabulary of its own where it finds none: look first.
    if folder.is_dir() and not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt")):
        raise UserError(
            f"data.tokenizer={name_or_path}: expected tokenizer.json or vocab.txt in this folder, found neither"
        )
    try:
        tokenizer = read_tokenizer(name_or_path)
    except Exception as error:  # transformers and tokenizers raise plain Exception among others
        reason = " ".join(str(error).split())
        raise UserError(f"data.tokenizer={name_or_path}: cannot be loaded as a BERT tokenizer: {reason}") from error
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=tokenizer.mask_token != "[MASK]")
    special = [getattr(tokenizer, role) or token for role, token in zip(_ROLES, SPECIAL_TOKENS, strict=True)]
    missing = [token for token in special if token not in vocabulary]
    if missing or len(vocabulary) <= len(SPECIAL_TOKENS):
        found = f"{len(vocabulary)} words without {' '.join(missing)}" if missing else "nothing but the special tokens"
        raise UserError(
            f"data.tokenizer={name_or_path}: expected a vocabulary with {' '.join(SPECIAL_TOKENS)}, or with a "
            f"RoBERTa's special tokens, found {found}; name a BERT or RoBERTa tokenizer, or leave data.tokenizer out "
            "to build one from the catalogue"
        )
    forget_lengths(tokenizer)
    return tokenizer


def build_tokenizer(texts: Iterable[str], vocab_size: int, out: Path) -> PreTrainedTokenizerBase:
    """Build a lower-cased BERT WordPiece vocabulary and save it in the folder `out`.

    The same texts, in any order, give the same bytes. Every character seen is a word of its own while there is room,
    the most frequent first; what is left goes to the most frequent pieces (byte-pair merges, as the WordPiece trainer
    of Hugging Face's tokenizers counts them).

    Args:
        texts: titles, queries; any number.
        vocab_size: at most this many words, specials included.
        out: folder, made where it is missing.

    Raises:
        UserError: there is no text at all, or vocab_size leaves no room for a character.
    """
    words = _count_words(texts)
    room = vocab_size - len(SPECIAL_TOKENS)
    if not words:
        raise UserError(f"{out}: no tokenizer can be built: the texts hold no word at all")
    if room < 1:
        raise UserError(f"model.vocab_size={vocab_size}: expected more than the {len(SPECIAL_TOKENS)} special tokens")
    single: Counter[str] = Counter()
    inner: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            single[character] += count
        for character in word[1:]:
            inner[character] += count
    characters = _most_frequent(single)[:room]
    inner_characters = _most_frequent(inner)[: min(room - len(characters), _MAX_INNER)]
    vocabulary = [*SPECIAL_TOKENS, *characters, *("##" + character for character in inner_characters)]
    vocabulary += _pieces(words, set(characters), inner_characters, vocab_size - len(vocabulary))
    tokenizer = BertTokenizer(vocab={word: index for index, word in enumerate(vocabulary)}, do_lower_case=True)
    tokenizer.save_pretrained(str(out))
    return load_tokenizer(str(out))


def words_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """How many words, and 16 digits that another vocabulary, or the same words in another order, would not give."""
    words = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]), ensure_ascii=False)
    return f"{len(tokenizer)} words, {hashlib.sha256(words.encode()).hexdigest()[:16]}"


def encode_pair(
    tokenizer: PreTrainedTokenizerBase, query: str | None, title: str, max_text_tokens: int, max_query_tokens: int
) -> TextTokens:
    """The text of one sample (SPEC 1): `[CLS] query [SEP] title [SEP]`, or `[CLS] title [SEP]` where query is None.

    The query is normalised here, for training, scoring and inference alike: however it is spelled in a table or in a
    call, it reads as the same tokens. A title stays the seller's own.
    A missing title (no token left of it) leaves `[CLS] query [SEP]`, or `[CLS] [SEP]`. Both are cut at tokens: the
    title first, the query only past max_query_tokens.

    Args:
        tokenizer: from load_tokenizer.
        query: or tag, in any spelling; None for a single text.
        title: "" where it is missing.
        max_text_tokens: of the whole, specials included.
        max_query_tokens: of `[CLS] query [SEP]`.
    """
    cls_id, sep_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    title_ids = _word_ids(tokenizer, title)
    if query is None:
        ids = [cls_id, *title_ids[: max_text_tokens - 2], sep_id]
        return TextTokens(np.array(ids, dtype=np.int64), np.zeros(len(ids), dtype=np.int64), 0)
    first = [
        cls_id,
        *_word_ids(tokenizer, normalise_query(query))[: min(max_query_tokens, max_text_tokens) - 2],
        sep_id,
    ]
    second = title_ids[: max(0, max_text_tokens - len(first) - 1)]
    if second:
        second.append(sep_id)
    types = np.zeros(len(first) + len(second), dtype=np.int64)
    types[len(first) :] = 1
    return TextTokens(np.array(first + second, dtype=np.int64), types, len(first))


def drop_words(rng: np.random.Generator, text: TextTokens, probability: float) -> TextTokens:
    """The text without some of its title's word pieces, each of which is left out with this probability.

    One piece always stays, and so do the special tokens and what stands before the title.

    Args:
        rng: of this sample.
        text: of one sample.
        probability: of each piece; at 1 one is left.
    """
    first, last = text.num_query or 1, len(text.input_ids) - 1  # the title's pieces, without its [SEP]
    if last - first < 2:
        return text
    kept = np.ones(len(text.input_ids), dtype=bool)
    kept[first:last] = rng.random(last - first) >= probability
    stays = first + int(rng.integers(last - first))
    if not kept[first:last].any():
        kept[stays] = True
    return TextTokens(text.input_ids[kept], text.token_type_ids[kept], text.num_query)


def _word_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    backend = tokenizer.backend_tokenizer
    # "[MASK]" in a seller's title is a word, no mask. The flag does not survive pickling, so it is set here.
    backend.encode_special_tokens = True
    take_off_padding(tokenizer)  # calling the tokenizer itself, as its users may, sets what that call asks for
    return list(backend.encode(text, add_special_tokens=False).ids)


def _count_words(texts: Iterable[str]) -> Counter[str]:
    """How often each word occurs as BERT splits text: lower-cased, Chinese characters and punctuation alone."""
    normalise = normalizers.BertNormalizer(lowercase=True).normalize_str
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in split(normalise(text)))
    return Counter({word: count for word, count in words.items() if len(word) <= _MAX_WORD})


def _most_frequent(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda key: (-counts[key], key))


def _pieces(words: Counter[str], characters: set[str], inner_characters: list[str], room: int) -> list[str]:
    """At most `room` merged pieces, in the order of the merges.

    The library's own WordPiece trainer numbers "##" characters in the order of a randomly seeded hash table and breaks
    ties by these numbers, so its vocabulary differs from run to run. With "##" characters written as private-use
    characters it is plain byte-pair merging over a sorted alphabet, which has no such freedom.
    """
    if room <= 0:
        return []
    codes = {character: chr(_INNER + index) for index, character in enumerate(sorted(inner_characters))}
    plain = {code: character for character, code in codes.items()}

    def coded() -> Iterator[str]:
        for word in sorted(words):
            if len(word) > 1 and word[0] in characters and all(character in codes for character in word[1:]):
                spelled = word[0] + "".join(codes[character] for character in word[1:])
                for _ in range(words[word]):
                    yield spelled

    tokenizer = Tokenizer(models.BPE())
    # The alphabet comes on top of what there is room for: it is in the vocabulary already.
    alphabet = {character for word in coded() for character in word}
    trainer = trainers.BpeTrainer(vocab_size=room + len(alphabet), min_frequency=_MIN_COUNT, show_progress=False)
    tokenizer.train_from_iterator(coded(), trainer)
    learned = tokenizer.get_vocab()
    pieces = sorted((piece for piece in learned if len(piece) > 1), key=lambda piece: learned[piece])
    return [
        ("##" if piece[0] in plain else "") + "".join(plain.get(character, character) for character in piece)
        for piece in pieces[:room]
    ]
