"""The one way in which a value of a source becomes text, for items, labels, lexicons and logs.

Missing (None) are null and NaN. A whole float is written as the integer that it is, since an integer column with a gap
becomes a float in pandas; another float as Python prints it. A float that is too large to tell neighbouring integers
apart is refused: an id that was read as one has lost its last digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

EXACT_BITS = {16: 11, 32: 24, 64: 53}  # width of a float -> bits of its significand
SURROGATE = "text with half a surrogate pair, which is no text; write it as UTF-8"


class NotTextError(ValueError):
    """A value that has no text; the message says what it is and what was expected.

    Attributes:
        index: its position in an array; 0 for a single value.
    """

    def __init__(self, message: str, index: int = 0) -> None:
        super().__init__(message)
        self.index = index


class InexactError(NotTextError):
    """A float that stands for several integers."""


def as_text(value: Any) -> str | None:
    """Return a value of JSON or Parquet as text; None where it is missing.

    Raises:
        InexactError: a float at or above 2**53, or infinite.
        NotTextError: a list, an object, a date, bytes that are not UTF-8, or text that cannot be encoded.
    """
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise NotTextError(SURROGATE)
        return value
    if value is None:
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | UUID):
        return str(value)
    if isinstance(value, float):
        return _float_text(value, EXACT_BITS[64], repr)
    if isinstance(value, Decimal):
        return None if value.is_nan() else f"{value.normalize():f}" if value else "0"
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise NotTextError("bytes that are not UTF-8; convert them to UTF-8") from None
    raise NotTextError(f"a {type(value).__name__}; expected text or a number")


def as_bytes(value: Any) -> bytes | None:
    """Return the text of a value as UTF-8; half a surrogate pair becomes bytes that are not UTF-8.

    Raises:
        NotTextError: as in `as_text`, but for text.
    """
    text = value if isinstance(value, str) else as_text(value)
    return None if text is None else text.encode("utf-8", "surrogatepass")


def time_bytes(value: Any) -> bytes | None:
    """Return the text of a value that is a time: as `as_bytes`, but a float may be of any size, since it is no id."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return None if isinstance(value, float) and math.isinf(value) else as_bytes(value)


def text_array(array: Any, *, time: bool = False) -> Any:
    """Return the values of an Arrow array as `as_bytes`, or for a `time` as `time_bytes`, would: an array of binary.

    Text keeps its bytes, whether they are UTF-8 or not.

    Raises:
        NotTextError: at the first value without text; its `index` is the position in the array.
    """
    kind = array.type
    if pa.types.is_dictionary(kind):
        return text_array(array.dictionary_decode(), time=time)
    if isinstance(array, pa.ExtensionArray) and not pa.types.is_fixed_size_binary(kind.storage_type):
        return text_array(array.storage, time=time)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.large_string()).view(pa.large_binary()).cast(pa.binary())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return array.cast(pa.binary())
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.string()).cast(pa.binary())
    if pa.types.is_floating(kind) and not time:
        return _float_texts(array).cast(pa.binary())
    convert: Callable[[Any], bytes | None] = time_bytes if time else as_bytes
    texts = []
    for index, value in enumerate(array.to_pylist()):
        try:
            texts.append(convert(value))
        except NotTextError as error:
            raise type(error)(str(error), index) from None
    return pa.array(texts, pa.binary())


def _float_texts(array: Any) -> Any:
    """Return `as_text` of every value of an array of floats: whole ones in Arrow, the few others one by one."""
    bits = EXACT_BITS[array.type.bit_width]
    values = array.cast(pa.float64())
    values = pc.if_else(pc.is_nan(values), pa.scalar(None, pa.float64()), values)
    large = pc.fill_null(pc.greater_equal(pc.abs(values), 2.0**bits), False)
    if pc.any(large).as_py():
        index = pc.index(large, True).as_py()
        raise InexactError(_too_large(values[index].as_py(), bits), index)
    whole = pc.equal(values, pc.trunc(values))
    texts = pc.if_else(whole, values, 0.0).cast(pa.int64()).cast(pa.string())
    if pc.all(whole).as_py() in (True, None):
        return texts
    rest = np.flatnonzero(pc.fill_null(pc.invert(whole), False).to_numpy(zero_copy_only=False))
    shortest = [str(value) for value in array.take(pa.array(rest)).to_numpy(zero_copy_only=False)]
    return pc.replace_with_mask(texts, pc.fill_null(pc.invert(whole), False), pa.array(shortest, pa.string()))


def _float_text(value: float, bits: int, shortest: Callable[[float], str]) -> str | None:
    if math.isnan(value):
        return None
    if abs(value) >= 2.0**bits:
        raise InexactError(_too_large(value, bits))
    return str(int(value)) if value.is_integer() else shortest(value)


def _too_large(value: float, bits: int) -> str:
    return (
        f"{value!r}, a floating-point number at or above 2**{bits}, which has lost its last digits; write it as text "
        "or as an integer"
    )
