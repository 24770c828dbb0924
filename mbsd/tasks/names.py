"""Names of categories and tags as texts that are compared with items."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from sklearn.preprocessing import normalize

from mbsd.tasks.vector_task import Encode, Vectors

SEPARATOR = ">"  # of the names in a category's path, such as Apparel > Topwear > Shirts


def shown_name(name: str, show: Literal["leaf", "path"]) -> str:
    """What is said of a class.

    Args:
        name: a category, or a path of them, "Apparel > Topwear > Shirts".
        show: leaf: the last name of a path; path: all of them, as words one after the other.
    """
    names = [part.strip() for part in name.split(SEPARATOR) if part.strip()] or [name]
    return names[-1] if show == "leaf" else " ".join(names)


def text_vectors(texts: Sequence[str], templates: Sequence[str], encode: Encode) -> Vectors:
    """Unit vectors [t, E] of t texts: of each the mean of its unit vectors in every template (at its "{}")."""
    each: Vectors = normalize(encode(templated(texts, templates)))
    found: Vectors = normalize(each.reshape(len(texts), len(templates), -1).mean(axis=1))
    return found


def templated(texts: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Each text in every template, text after text."""
    return [template.replace("{}", text) for text in texts for template in templates]
