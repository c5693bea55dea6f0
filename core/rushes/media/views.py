# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""View transforms backwards: a plate that looks like the clip when it is seen through a view, such as that of ACES.

It is a choice with a price, which is why it is none by default: a view squeezes highlights, so its inverse stretches
them, and the small steps of a clip near white become large ones.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import PyOpenColorIO as ocio  # noqa: N813 - the field's name for it

from rushes.media import color
from rushes.shot import ShotError

DEFAULT = "default"
# Where views come from, beside $OCIO: ACES 1.3 as plates are, and ACES 2, which OpenColorIO has from 2.5 on
_CONFIGS = (color.CONFIG, "ocio://cg-config-v4.0.0_aces-v2.0_ocio-v2.5")
_DISPLAY = "sRGB - Display"
_DEFAULT_VIEW = "ACES 1.0 - SDR Video"
_NOT_TONE_MAPPED = ("raw", "un-tone-mapped", "video (colorimetric)")
_INTERCHANGE, _SCENE = "ACES2065-1", "ACEScg"  # the cap works where compositors do
DEFAULT_CAP = 8.0


@dataclass(frozen=True)
class View:
    """A view of a display; config: the configuration that has it, as `ocio::Config` finds it."""

    config: str
    display: str
    name: str

    @property
    def text(self) -> str:
        return f"{self.name} on {self.display}"

    @property
    def white(self) -> float:
        """The scene-linear value that display white comes from, before the cap."""
        return float(_scene(np.ones((1, 1, 3), np.float32), self)[0, 0, 1])


def find_view(text: str) -> View:
    """A view by its name, or as DISPLAY/VIEW; "default" is ACES 1.0 for SDR. $OCIO is asked first. Raises ShotError."""
    wanted = _DEFAULT_VIEW if text.lower() == DEFAULT else text
    display, slash, name = wanted.rpartition("/")
    views = _views()
    for view in views:
        is_display = not slash or view.display.lower() == display.lower()
        if is_display and view.name.lower() == (name if slash else wanted).lower():
            return view
    names = dict.fromkeys(view.name for view in views)
    raise ShotError(f"--inverse-view: got {text!r}; allowed are {DEFAULT}, {', '.join(names)}, also as DISPLAY/VIEW")


def list_views() -> list[str]:
    """All that `find_view` takes, as DISPLAY/VIEW, those of an sRGB display first."""
    return list(dict.fromkeys(f"{view.display}/{view.name}" for view in _views()))


def _views() -> list[View]:
    """All that can be inverted, those of an sRGB display first: a clip is made for one."""
    found = []
    for place in (color.studio_name(), *_CONFIGS):
        config = _config(place) if place else None
        if config is None:
            continue
        displays = sorted(
            config.getDisplays(), key=lambda display: (display != _DISPLAY, "srgb" not in display.lower())
        )
        for display in displays:
            found += [
                View(place, display, name) for name in config.getViews(display) if name.lower() not in _NOT_TONE_MAPPED
            ]
    return found


@lru_cache(maxsize=4)
def _config(place: str) -> ocio.Config | None:
    if place == color.studio_name():
        return color.studio()
    try:
        return ocio.Config.CreateFromFile(place)
    except ocio.Exception:
        return None  # an OpenColorIO from before this configuration: its views are then not among those allowed


@lru_cache(maxsize=4)
def _processor(view: View, is_inverse: bool) -> ocio.CPUProcessor:
    config = _config(view.config)
    if config is None:
        raise ShotError(f"--inverse-view: this OpenColorIO has no {view.config}; a newer one is allowed")
    source = config.getRoleColorSpace("aces_interchange")
    if not source:
        raise ShotError(
            f"--inverse-view: {view.config} has no role aces_interchange, which says what its colours are; "
            "a configuration with it is allowed"
        )
    direction = ocio.TRANSFORM_DIR_INVERSE if is_inverse else ocio.TRANSFORM_DIR_FORWARD
    transform = ocio.DisplayViewTransform(source, view.display, view.name, direction=direction)
    try:
        return config.getProcessor(transform).getOptimizedCPUProcessor(
            ocio.BIT_DEPTH_F32, ocio.BIT_DEPTH_F32, ocio.OPTIMIZATION_LOSSLESS
        )
    except ocio.Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ShotError(f"--inverse-view: {view.text} cannot be used ({reason}); another view is allowed") from error


def _scene(frame: np.ndarray, view: View) -> np.ndarray:
    return color.convert(color.apply(_processor(view, True), frame), _INTERCHANGE, _SCENE)


def invert(frame: np.ndarray, view: View, space: str, cap: float) -> np.ndarray:
    """The light that `view` shows as `frame`: float32 [h, w, 3] in `space`.

    frame: float32 [h, w, 3] in 0 ... 1, as the display is fed; cap: what no channel of ACEScg passes. From half of it
    on light is bent towards it, all three channels by the same factor, so that hues stay.
    """
    scene = _scene(frame, view)  # [h, w, 3]
    peak = scene.max(axis=2, keepdims=True)  # [h, w, 1]
    knee = np.float32(cap / 2)
    over = np.maximum(peak - knee, 0)
    bent = knee + knee * -np.expm1(-over / knee)
    scene = np.where(over > 0, scene * (bent / np.maximum(peak, knee)), scene)
    return color.convert(scene, _SCENE, space)


def show(frame: np.ndarray, view: View, space: str) -> np.ndarray:
    """What `view` shows of light: float32 [h, w, 3] in 0 ... 1, as its display is fed. frame: the same, in `space`."""
    shown = color.apply(_processor(view, False), color.convert(frame, space, _INTERCHANGE))
    return np.clip(shown, 0.0, 1.0)


def to_text(view: View) -> str:
    return json.dumps(dataclasses.astuple(view))


def from_text(text: str) -> View:
    """`to_text`'s form. Raises ShotError where this machine does not have the view."""
    try:
        view = View(*map(str, json.loads(text)))
    except (TypeError, ValueError) as error:
        raise ShotError(f"view: got {text!r}; a view as Rushes writes it down is allowed") from error
    if view.config not in (color.studio_name(), *_CONFIGS):
        raise ShotError(f"view: {view.text} is of {view.config}; with that in $OCIO it is allowed")
    _processor(view, False)
    return view
