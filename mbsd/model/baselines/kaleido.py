"""Kaleido-BERT: FashionBERT with crops at five scales, 1² + 2² + 3² + 4² + 5² = 55 (Zhuge et al. 2021).

The authors first cut the picture to what a saliency network finds in it; that step is left out.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from mbsd.model.baselines.fashionbert import FashionBert, FashionBertConfig


@strict
class KaleidoConfig(FashionBertConfig):
    """FashionBERT's with 55 crops."""

    model_type = "mbsd_kaleido"

    crop_grids: list[int] | tuple[int, ...] = (1, 2, 3, 4, 5)

    def backbone(self) -> KaleidoBert:
        """A new one."""
        return KaleidoBert(self)


class KaleidoBert(FashionBert):
    """Kaleido-BERT; h is the pooled [CLS]."""

    config_class = KaleidoConfig
