# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What makes a shot faster, with an error, and is said to the engine, not in the shot; and words on what came of it.

Read here for the command line, for jobs and for records of files, so that all refuse with the same sentences. Loads no
torch until an attention is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from rushes.shot import ShotError

if TYPE_CHECKING:
    from rushes.attention.layers import SparseAttention

DENSE = "dense"


class Speed(NamedTuple):
    """attention: what self-attention keeps, None for all of it. fp8_products: see `Engine.load`."""

    attention: SparseAttention | None = None
    fp8_products: bool = False

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> Speed:
        """From `attention` and `fp8_products` of a request, each as it is when it is absent. Raises ShotError."""
        products = fields.get("fp8_products", False)
        if not isinstance(products, bool):
            raise ShotError(f"fp8-products: got {products!r}; true or false is allowed")
        return cls(read_attention(fields.get("attention")), products)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, what `read` takes."""
        attention = None if self.attention is None else asdict(self.attention)
        return {"attention": attention, "fp8_products": self.fp8_products}


PLAIN = Speed()


def read_attention(value: object) -> SparseAttention | None:
    """From the text of --attention or the dict that a record has; None, as "dense" is, for all of it. ShotError."""
    if value is None or value == DENSE:
        return None
    from rushes.attention.layers import SparseAttention

    try:
        if isinstance(value, str):
            return SparseAttention.parse(value)
        if isinstance(value, Mapping):
            return SparseAttention.from_dict(value)
    except ValueError as error:
        said = str(error)
        raise ShotError(said if said.startswith("attention:") else f"attention: {said}") from error
    raise ShotError(f"attention: got {value!r}; a text such as 0.2, its fields as an object, or dense is allowed")


def describe_attention(report: Mapping[str, Any]) -> str:
    """What self-attention delivered, see `SparseLayers.report`, in a line."""
    layers = report["layers"]
    dense = [f"step{'s' if len(at) > 1 else ''} {_span(at)} ({why})" for why, at in report["dense_steps"].items()]
    parts = [f"{report['density']:.1%} of the scores in {len(layers)} layers"] if layers else []
    parts += [f"dense in {', '.join(dense)}"] if dense else []
    return f"attention: {'; '.join(parts)}"


def describe_reuse(report: Mapping[str, Any]) -> str:
    """What steps took from earlier ones, see `Reuse.report`, in a line."""
    reused, full = len(report["reused_steps"]), len(report["full_steps"])
    error = f"their first block was up to {report['change']:.1%} off" if reused else "none changed so little"
    return f"reuse: {reused} of {reused + full} steps reused most blocks; {error}"


def _span(steps: Sequence[int]) -> str:
    """Steps from 0, as people count them: "1" or "1-3"."""
    first, last = min(steps) + 1, max(steps) + 1
    return str(first) if first == last else f"{first}-{last}"
