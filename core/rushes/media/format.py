# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""OutputFormat: how outputs are written, apart from their names and their content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rushes.media.paths import COMPRESSIONS, DEPTHS, MAX_START_FRAME, PICTURES, Target
from rushes.shot import ShotError


@dataclass(frozen=True)
class OutputFormat:
    """Choices that hold for all outputs of a shot; None leaves one to its default.

    colorspace: of plates, by name, None means ACEScg; compression: of plates, one of COMPRESSIONS, None means zip;
    depth: of plates, one of DEPTHS, None means half; start_frame: number of the first file of a sequence;
    manifest: whether a manifest is written beside pictures, None means beside plates alone.
    Raises ShotError for a value that no output allows.
    """

    colorspace: str | None = None
    compression: str | None = None
    depth: str | None = None
    start_frame: int = 1001
    manifest: bool | None = None

    def __post_init__(self) -> None:
        for name, got, allowed in (("compression", self.compression, COMPRESSIONS), ("depth", self.depth, DEPTHS)):
            if got is not None and got not in allowed:
                raise ShotError(f"--{name}: got {got!r}; allowed are {', '.join(allowed)}")
        if not 0 <= self.start_frame <= MAX_START_FRAME:
            raise ShotError(
                f"start frame: got {self.start_frame}; a whole number from 0 to {MAX_START_FRAME} is allowed"
            )

    def check(self, targets: Sequence[Target]) -> None:
        """Raise ShotError for a choice that none of the outputs can follow, and for an unknown colour space."""
        has_plate = any(target.kind == "exr" for target in targets)
        if self.colorspace is not None and not has_plate:
            raise ShotError(
                f"--colorspace: got {self.colorspace!r} without a plate; it is allowed with an .exr output "
                "(movies are Rec.709, stills are sRGB)"
            )
        for name, got in (("compression", self.compression), ("depth", self.depth)):
            if got is not None and not has_plate:
                raise ShotError(f"--{name}: got {got!r} without a plate; it is allowed with an .exr output")
        if has_plate:
            from rushes.media import color

            color.find_space(self.colorspace or color.DEFAULT_SPACE)

    def wants_manifest(self, target: Target) -> bool:
        """A plate travels from hand to hand, frame by frame; a movie is one file, whose own reader counts frames."""
        return target.kind == "exr" if self.manifest is None else self.manifest and target.kind in PICTURES
