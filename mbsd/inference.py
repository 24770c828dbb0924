"""A trained model in Python: titles and pictures in, vectors, tag scores and categories out.

    encoder = Encoder.load("runs/attributes")
    vectors = encoder.encode(titles=["red linen dress"], images=["dress.jpg"])
    scores = encoder.score(["colour:red"], titles=["red linen dress"], images=["dress.jpg"])

A model of the contrastive stage also compares titles with pictures:

    encoder = Encoder.load("runs/contrastive")
    queries = encoder.embed(titles=["red linen dress"])
    hits = encoder.search("runs/vectors", titles=["red linen dress"], k=20)

Pictures take the way of `mbsd catalog build` and of evaluation (the same normalising, decoder and packed forward), so
that an item's vector is that of `launchers/embed.py`.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from mbsd.batch import Batch
from mbsd.catalog.build.normalise import normalise_image
from mbsd.catalog.build.open_image import ImageRejected
from mbsd.checkpoint.resume import weights_folder
from mbsd.config.data import DataConfig
from mbsd.data.batch_builder import BatchBuilder
from mbsd.data.decode_dali import make_decoder
from mbsd.data.loader import one_batch
from mbsd.data.samples import Sample
from mbsd.data.spec import BatchSpec
from mbsd.data.text import load_tokenizer
from mbsd.errors import UserError
from mbsd.io.files import digest_of
from mbsd.io.home import expand_home
from mbsd.io.settings_text import read_yaml
from mbsd.metrics.search import Hit, StoredIndex
from mbsd.model.config import BackboneConfig
from mbsd.model.embedder import Embedder, load_embedder, shown_for
from mbsd.model.heads import MbsdForClassification, MbsdForMatching
from mbsd.model.load import load_model, saved_config

Picture = Image.Image | bytes | str | PathLike[str]
View = Literal["full", "text", "image"]
SharedView = Literal["text", "image", "mean"]
MAX_SIDE = 320  # pixels, of `mbsd catalog build`
TEXT_LENGTHS = ("max_text_tokens", "max_query_tokens")


@dataclass(frozen=True)
class _Items:
    """Titles and JPEGs in memory, as a catalogue gives them."""

    titles: list[str]
    jpegs: list[bytes | None]

    def title(self, item: int, /) -> str:
        return self.titles[item]

    def has_image(self, item: int, /) -> bool:
        return self.jpegs[item] is not None

    def image(self, item: int, /) -> bytes | None:
        return self.jpegs[item]


@dataclass(frozen=True)
class _Limits:
    """Where and in which pieces an encoder works: device, items at once, pixels of a picture's long side."""

    device: torch.device
    batch_size: int
    max_side: int


class Encoder:
    """A model and what it takes to ask it. Get one with `Encoder.load`."""

    def __init__(
        self,
        embedder: Embedder,
        head: Any,
        tokenizer: PreTrainedTokenizerBase,
        data: DataConfig,
        limits: _Limits,
        folder: Path,
    ) -> None:
        device, self._limits, self._folder = limits.device, limits, folder
        self._embedder = embedder.to(device).eval()
        self._head = head.to(device).eval() if head is not None else None
        self._tokenizer, self._data, self._device = tokenizer, data, device
        self._decoder = make_decoder(data.decoder, data.image_size, device, num_threads=2, max_batch=limits.batch_size)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        device: str | torch.device | None = None,
        vector: Literal["auto", "h", "mean", "contrastive"] = "auto",
        decoder: Literal["auto", "torchvision", "dali"] = "auto",
        batch_size: int = 64,
        max_side: int = MAX_SIDE,
    ) -> Encoder:
        """The encoder of a run folder, one of its checkpoints, or a folder of `mbsd export` or save_pretrained.

        Args:
            device: default: the first GPU, or the CPU.
            vector: as of `launchers/embed.py`.
            decoder: as data.decoder.
            batch_size: items encoded at once.
            max_side: pixels that the catalogue's pictures were reduced to.

        Raises:
            UserError: no model there.
        """
        folder = weights_folder(expand_home(str(path)))
        saved = saved_config(folder)
        data = DataConfig(catalog="", image_size=saved.image_size, decoder=decoder)
        data = dataclasses.replace(data, **_text_lengths(folder))
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        head = _load_head(folder, saved)
        embedder = load_embedder(folder, saved.image_size, vector)
        if head is not None:
            embedder = Embedder(head.mbsd, embedder.vector)  # one backbone for both
        tokenizer = load_tokenizer(str(folder))
        return cls(embedder, head, tokenizer, data, _Limits(chosen, batch_size, max_side), folder)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes of a model for classification or sensitive products, by label."""
        return self._embedder.config.label_names

    def encode(
        self,
        titles: Sequence[str | None] | None = None,
        images: Sequence[Picture | None] | None = None,
        *,
        view: View = "full",
    ) -> NDArray[np.float32]:
        """Vectors [n, D] of n items.

        Args:
            titles: of the items; None: a missing one, or none at all.
            images: likewise; PIL pictures, encoded bytes, or paths. A PIL picture counts as one without loss: what came
                from a JPEG is closest to the catalogue's as bytes or path.
            view: what of them is shown.

        Raises:
            UserError: neither titles nor images, not as many of the one as of the other, or a picture that cannot be
                read, by its place.
        """
        if self._embedder.vector == "contrastive":
            return self._of_view(titles, images, view)
        items = self._items(titles, images)
        samples = [Sample(item) for item in range(len(items.titles))]
        found = self._run(lambda batch: self._embedder(batch)[0], items, samples, (view,))
        return found.reshape(len(samples), self._embedder.width(view)).astype(np.float32)

    def embed(
        self,
        titles: Sequence[str | None] | None = None,
        images: Sequence[Picture | None] | None = None,
        *,
        view: SharedView | None = None,
    ) -> NDArray[np.float32]:
        """Unit vectors [n, E] of n items in the space that titles and pictures share; arguments as of `encode`.

        Zeros for an item that shows nothing: text without a title, image without a picture.

        Args:
            view: text, image, or mean: the direction of the sum of both vectors, of the one alone where the other is
                missing. Default: text where only titles are given, image where only images are, else mean.

        Raises:
            UserError: as of `encode`; or the model is none of the contrastive stage.
        """
        if self._embedder.vector != "contrastive":
            raise UserError(
                f"{self._folder}: has vectors {self._embedder.vector}, in which titles and pictures do not compare; "
                "load a model of the contrastive stage, or use encode"
            )
        return self._of_view(
            titles, images, view or ("text" if images is None else "image" if titles is None else "mean")
        )

    def search(
        self,
        vectors: str | PathLike[str] | StoredIndex,
        titles: Sequence[str | None] | None = None,
        images: Sequence[Picture | None] | None = None,
        *,
        k: int = 10,
    ) -> list[list[Hit]]:
        """The k items of a catalogue that are nearest to each of n queries, best first.

        Args:
            vectors: a folder that `launchers/embed.py` wrote with this model (its view mean, where it has several), or
                `open_index` of it, which reads it once for many searches.
            titles, images: the queries; as of `embed`.

        Raises:
            UserError: as of `embed` and `open_index`; or a query that shows nothing.
        """
        index = vectors if isinstance(vectors, StoredIndex) else self.open_index(vectors)
        queries = self.embed(titles, images)
        empty = np.flatnonzero(~queries.any(axis=1))
        if len(empty):
            raise UserError(f"query {empty[0]}: has neither a title nor a picture; leave it out")
        return index.search(queries, k)

    def open_index(self, folder: str | PathLike[str], view: SharedView | None = None) -> StoredIndex:
        """The vectors of a folder that `launchers/embed.py` wrote with this model, ready for `search`.

        Args:
            view: whose vectors are searched; default: the only one there is, or mean.

        Raises:
            UserError: no finished vectors there, those of another model, or none that titles and pictures share.
        """
        index = StoredIndex(Path(expand_home(str(folder))), view)
        found = index.stored
        if found.manifest["vector"] != "contrastive" or found.view == "full":
            raise UserError(
                f"{folder}: holds vectors {found.manifest['vector']} of the view {found.view}, which do not compare "
                "with titles and pictures; write them with launchers/embed.py --vector contrastive --views "
                "text,image,mean"
            )
        if found.manifest["model"] != self._digest:
            raise UserError(
                f"{folder}: its vectors are of another model ({found.manifest['model_path']}, "
                f"{found.manifest['model'][:12]}…) than {self._folder} ({self._digest[:12]}…); load that model, or "
                "write the vectors again with this one"
            )
        return index

    @cached_property
    def _digest(self) -> str:
        return digest_of(self._folder / "model.safetensors")

    def score(
        self,
        tags: Sequence[str],
        titles: Sequence[str | None] | None = None,
        images: Sequence[Picture | None] | None = None,
        *,
        view: View = "full",
    ) -> NDArray[np.float64]:
        """Probabilities [n, len(tags)] that each tag (or query) holds for each of n items; arguments as of `encode`.

        Raises:
            UserError: as of `encode`; or the model was trained neither on attributes nor in stage 2.
        """
        config = self._embedder.config
        if self._head is None or config.task not in ("", "attributes"):
            raise UserError(
                f"this model ({config.task or 'not fine-tuned'}) scores no tags; load one of stage 2, or of task "
                "attributes"
            )
        items = self._items(titles, images)
        samples = [Sample(item, text=tag) for item in range(len(items.titles)) for tag in tags]
        head = self._head
        logits = self._run(lambda batch: head(batch).logits[0], items, samples, (view,))
        probabilities: NDArray[np.float64] = _sigmoid(logits).reshape(len(items.titles), len(tags))
        return probabilities

    def classify(
        self,
        titles: Sequence[str | None] | None = None,
        images: Sequence[Picture | None] | None = None,
        *,
        view: View = "full",
    ) -> NDArray[np.float64]:
        """Probabilities [n, C] of the `labels` of each of n items; arguments as of `encode`.

        Raises:
            UserError: as of `encode`; or the model was trained for another task.
        """
        config = self._embedder.config
        if self._head is None or config.task not in ("classification", "sensitive"):
            raise UserError(
                f"this model ({config.task or 'not fine-tuned'}) knows no categories; load one of task classification "
                "or sensitive"
            )
        items = self._items(titles, images)
        samples = [Sample(item) for item in range(len(items.titles))]
        head = self._head
        logits = self._run(lambda batch: head(batch).logits[0], items, samples, (view,))
        if config.task == "sensitive":
            positive = _sigmoid(logits.reshape(-1))
            return np.stack([1 - positive, positive], axis=1)
        probabilities: NDArray[np.float64] = torch.from_numpy(logits).double().softmax(-1).numpy()
        return probabilities

    def _of_view(self, titles: Any, images: Any, view: str) -> NDArray[np.float32]:
        """[n, E]; zeros for an item that shows nothing in the view."""
        items = self._items(titles, images)
        samples = [Sample(item) for item in range(len(items.titles))]
        embedder = self._embedder
        found = self._run(
            lambda batch: embedder.of_views(batch, (view,))[view].vectors_BE, items, samples, shown_for((view,))
        )
        return found.reshape(len(samples), embedder.width(view)).astype(np.float32)

    @torch.inference_mode()
    def _run(
        self, ask: Callable[[Batch], Tensor], items: _Items, samples: list[Sample], views: tuple[str, ...]
    ) -> NDArray[Any]:
        """What `ask` answers for batches of the samples in these views: [samples, …]."""
        config = self._embedder.config
        config.require_views(views, "view")
        spec = BatchSpec(views, None, config.num_patches, config.has_image_cls)
        builder = BatchBuilder(items, self._tokenizer, self._data, spec, self._decoder)
        found = []
        for start in range(0, len(samples), self._limits.batch_size):
            part = samples[start : start + self._limits.batch_size]
            batch = one_batch(builder, part, self._device)
            found.append(ask(batch).float().cpu().numpy())
        return np.concatenate(found) if found else np.zeros((0,), dtype=np.float32)

    def _items(self, titles: Sequence[str | None] | None, images: Sequence[Picture | None] | None) -> _Items:
        given = [len(values) for values in (titles, images) if values is not None]
        if not given or len(set(given)) > 1 or isinstance(titles, str):
            found = " and ".join(map(str, given)) or "none"
            raise UserError(f"titles and images: found {found}; give a list of one of them, or two lists of one length")
        jpegs = [self._jpeg(n, image) for n, image in enumerate(images or [None] * given[0])]
        return _Items([title or "" for title in titles or [None] * given[0]], jpegs)

    def _jpeg(self, number: int, image: Picture | None) -> bytes | None:
        if image is None:
            return None
        try:
            data = _bytes_of(image)
            return normalise_image(data, self._limits.max_side).jpeg
        except (OSError, ImageRejected) as error:
            name = f" ({image})" if isinstance(image, (str, PathLike)) else ""
            raise UserError(f"images[{number}]{name}: {error}; give a picture, or None where there is none") from error


def _bytes_of(image: Picture) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, (str, PathLike)):
        return Path(expand_home(str(image))).read_bytes()
    buffer = io.BytesIO()
    # Both keep every pixel; only TIFF knows the colours of print and numbers with a point.
    image.save(buffer, "TIFF" if image.mode in ("CMYK", "YCbCr", "LAB", "F") else "PNG")
    return buffer.getvalue()


def _load_head(folder: Path, saved: BackboneConfig) -> Any:
    kind = {kind.__name__: kind for kind in (MbsdForMatching, MbsdForClassification)}.get(
        (saved.architectures or [""])[0]
    )
    return load_model(kind, folder, saved.image_size, with_head=True) if kind is not None else None


def _text_lengths(folder: Path) -> dict[str, Any]:
    """The text lengths of the run that wrote the model, from its checkpoint or export; else the defaults."""
    run, exported = folder.parent / "config.yaml", folder / "preprocessor_config.json"
    if folder.name == "model" and run.is_file():
        settings = read_yaml(run)["data"]
    elif exported.is_file():
        settings = json.loads(exported.read_text(encoding="utf-8"))
    else:
        return {}
    return {name: int(settings[name]) for name in TEXT_LENGTHS if name in settings}


def _sigmoid(logits: NDArray[Any]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = torch.from_numpy(logits).double().sigmoid().numpy()
    return values
