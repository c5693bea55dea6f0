# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""From scenes to frames, with the ground truth that only a renderer has.

A clip's bytes depend on its scene, the size and the device alone. On a CPU clips are drawn one by one, so
that all tensors stay in the cache; elsewhere many together. A background that cannot change is drawn once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rushes.starter.background import FAR, draw_ground, draw_sky, ground_depth
from rushes.starter.layers import LAYERS, draw_layer
from rushes.starter.palette import LIGHTS, SUBJECTS, subject_color
from rushes.starter.scene import WIDTHS, Scene, Second, camera_at, shift_at, subject_at
from rushes.starter.sprites import PAINTERS, Spot, tinter
from rushes.starter.view import View, make_view

CHUNK = 32
"""Clips drawn together on an accelerator."""


@dataclass(frozen=True)
class Rendered:
    """Clips and their ground truth; B clips of F frames."""

    frames: Tensor
    """uint8 [B, F, H, W, 3], display sRGB."""
    mask: Tensor
    """bool [B, F, H, W]: pixels that the first subject covers by more than half."""
    shifts: Tensor
    """float32 [B, F, 3]: what the camera does to the backdrop since the first frame: right and down in
    fractions of the frame's width and height, and the logarithm of its zoom."""
    subject: Tensor
    """float32 [B, F, 3]: the subject's middle, x and y from the top left in fractions of the frame, and its
    height in fractions of the frame's height."""
    depth: Tensor | None = None
    """float16 [B, F, H, W] in metres along the camera's axis; the sky is at FAR."""


def render(
    scenes: Sequence[Scene],
    size: tuple[int, int] = (128, 80),
    device: str | torch.device = "cpu",
    depth: bool = False,
    first: int = 0,
    frames: int | None = None,
) -> Rendered:
    """Draw clips of equal length; `first` and `frames` cut a window out of them.

    size: width and height in pixels. All tensors of the result are on `device`.
    """
    width, height = size
    if width < 8 or height < 8:
        raise ValueError(f"size is {width}x{height}; allowed: at least 8x8")
    if not scenes:
        raise ValueError("scenes is empty; allowed: one or more")
    count = scenes[0].frames - first if frames is None else frames
    if any(scene.frames < first + count for scene in scenes) or first < 0 or count < 1:
        raise ValueError(f"frames {first} to {first + count - 1} are not in every scene")
    place = torch.device(device)
    chunk = 1 if place.type == "cpu" else CHUNK
    parts = []
    with torch.no_grad():
        for start in range(0, len(scenes), chunk):
            some = list(scenes[start : start + chunk])
            parts.append(_draw(some, (width, height), place, depth, first, count))
    truth = [_truth(scene, width / height, first, count) for scene in scenes]
    values = torch.tensor(truth, dtype=torch.float32, device=place)  # [B, F, 6]
    return Rendered(
        frames=torch.cat([part[0] for part in parts]),
        mask=torch.cat([part[1] for part in parts]),
        shifts=values[..., :3].contiguous(),
        subject=values[..., 3:].contiguous(),
        depth=torch.cat([part[2] for part in parts if part[2] is not None]) if depth else None,
    )


def _truth(scene: Scene, aspect: float, first: int, count: int) -> list[list[float]]:
    origin = shift_at(scene, first)
    rows = []
    for frame in range(first, first + count):
        camera = camera_at(scene, frame)
        x, y, z = subject_at(scene, frame)
        u, v, away = camera.project((x, y + 0.5 * scene.size, z))
        right, down, zoom = (a - b for a, b in zip(shift_at(scene, frame), origin, strict=True))
        tall = camera.focal * scene.size / away
        rows.append([right / aspect, down, zoom, u / aspect + 0.5, v + 0.5, tall])
    return rows


def _draw(
    scenes: list[Scene], size: tuple[int, int], device: torch.device, depth: bool, first: int, count: int
) -> tuple[Tensor, Tensor, Tensor | None]:
    width, height = size
    every = [scene for scene in scenes for _ in range(count)]
    numbers = [first + k for _ in scenes for k in range(count)]
    view = make_view(every, numbers, width, height, device)
    total = len(every)
    image = torch.empty(total, 3, height, width, device=device)
    distance = torch.empty(total, height, width, device=device) if depth else None
    for setting in sorted({scene.setting for scene in scenes}):
        chosen = [k for k, scene in enumerate(scenes) if scene.setting == setting]
        _background([scenes[k] for k in chosen], chosen, image, distance, view, first, count)
    mask = torch.zeros(total, height, width, dtype=torch.bool, device=device)
    seconds = [(n, s.second) for n, s in enumerate(every) if s.second is not None]
    for kind, facing in sorted({(s.kind, s.facing) for _, s in seconds}):
        some = [(n, s) for n, s in seconds if (s.kind, s.facing) == (kind, facing)]
        _subjects(image, distance, None, view, [n for n, _ in some], [s for _, s in some], numbers)
    for kind, facing in sorted({(s.kind, s.facing) for s in scenes}):
        rows = [n for n, s in enumerate(every) if (s.kind, s.facing) == (kind, facing)]
        _subjects(image, distance, mask, view, rows, [every[n] for n in rows], numbers)
    frames = image.mul_(255.0).add_(0.5).clamp_(0.0, 255.0).to(torch.uint8)
    frames = frames.view(len(scenes), count, 3, height, width).permute(0, 1, 3, 4, 2).contiguous()
    far = None if distance is None else distance.half().view(len(scenes), count, height, width)
    return frames, mask.view(len(scenes), count, height, width), far


def _background(
    scenes: list[Scene], places: list[int], image: Tensor, distance: Tensor | None, view: View, first: int,
    count: int,
) -> None:  # fmt: skip
    """Sky, ground and layers of clips with the same setting, into their frames of the image."""
    fixed = [scene.camera == "static" and scene.setting != "sea" for scene in scenes]
    for still in (True, False):
        chosen = [k for k, is_fixed in enumerate(fixed) if is_fixed == still]
        if not chosen:
            continue
        steps = 1 if still else count
        every = [scenes[k] for k in chosen for _ in range(steps)]
        part = make_view(every, [first + n for _ in chosen for n in range(steps)], view.width, view.height, view.device)
        picture = torch.empty(len(every), 3, view.height, view.width, device=view.device)
        far = None if distance is None else torch.full_like(picture[:, 0], FAR)
        _scenery(picture, far, part)
        rows = torch.tensor([places[k] * count + n for k in chosen for n in range(count)], device=view.device)
        for target, source in ((image, picture), (distance, far)):
            if target is None or source is None:
                continue
            if still:
                source = source.repeat_interleave(count, 0)
            target[rows] = source


def _scenery(picture: Tensor, far: Tensor | None, part: View) -> None:
    height = part.height
    horizons = [(camera.horizon + 0.5) * height for camera in part.cameras]
    below = max(0, min(height, math.ceil(max(horizons)) + 1))
    above = max(0, min(height, math.floor(min(horizons)) - 1))
    if below:
        draw_sky(picture, part, below)
    if above < height:
        if below < height:
            picture[:, :, below:] = 0.0
        draw_ground(picture, part, above)
        if far is not None:
            ground = ground_depth(part, above).expand(-1, -1, part.width)
            seen = part.v[:, above:] > part.column("horizon")
            far[:, above:] = torch.where(seen, ground, far[:, above:])
    for layer in LAYERS[part.scenes[0].setting]:
        draw_layer(picture, far, part, layer)


def _subjects(
    image: Tensor, distance: Tensor | None, mask: Tensor | None, view: View, rows: list[int],
    things: Sequence[Scene | Second], numbers: list[int],
) -> None:  # fmt: skip
    """One kind of subject with its shadow over the frames `rows`; `things[i]` stands in frame rows[i]."""
    height, kind, facing = view.height, things[0].kind, things[0].facing
    shadows: list[tuple[float, float, float, float, float]] = []
    bodies: list[tuple[float, ...]] = []
    for row, thing in zip(rows, things, strict=True):
        scene, camera = view.scenes[row], view.cameras[row]
        x, y, z = subject_at(scene, numbers[row]) if isinstance(thing, Scene) else (thing.x, 0.0, thing.z)
        u, v, away = camera.project((x, y, z))
        _, ground, _ = camera.project((x, 0.0, z))
        unit = camera.focal * height / away  # pixels per metre
        px, py = u * height + view.width / 2, v * height + height / 2
        # The sun turns the shadow a little aside; it weakens and widens with the height of the subject.
        aside = -0.12 if scene.sun_azimuth >= 0 else 0.12
        flight = y / thing.size
        wide = thing.size * _breadth(kind, facing) * (0.5 + 0.08 * min(flight, 2.0))
        flat = camera.y / away * 0.8 + 0.03
        strength = (0.34 if scene.time == "dawn" else 0.46) / (1.0 + 0.45 * flight)
        shadows.append(
            (
                px + aside * thing.size * unit,
                ground * height + height / 2,
                wide * unit,
                wide * flat * unit,
                strength,
            )
        )
        swing = 0.0
        if kind == "person":
            moving = isinstance(thing, Scene) and thing.motion in ("left", "right", "approach", "recede")
            phase = 2.0 * math.pi * (view.times[row] * 1.1 + (scene.phase if moving else 0.0))
            swing = math.sin(phase) if moving else 0.25
        bodies.append((px, py, thing.size * unit, 1.0 if scene.sun_azimuth >= 0 else -1.0, swing, away))
    _shadow(image, rows, shadows)
    _body(image, distance, mask, view, rows, things, bodies)


def _breadth(kind: str, facing: str) -> float:
    return 1.3 if kind == "car" and facing in ("front", "back") else WIDTHS[kind]


def _window(
    image: Tensor, rows: list[int], boxes: list[tuple[float, float, float, float]]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None:
    """Indices of equal windows that hold boxes (left, top, right, bottom in pixels): [n, 1, 1], [n, h, 1],
    [n, 1, w], and the middles of their pixels [n, h, 1], [n, 1, w]. None when no box is in the frame."""
    full_h, full_w = image.shape[2:]
    if all(b[2] < 0 or b[3] < 0 or b[0] > full_w or b[1] > full_h for b in boxes):
        return None
    wide = min(full_w, max(math.ceil(b[2]) - math.floor(b[0]) for b in boxes) + 2)
    high = min(full_h, max(math.ceil(b[3]) - math.floor(b[1]) for b in boxes) + 2)
    left = [max(0, min(full_w - wide, math.floor(b[0]) - 1)) for b in boxes]
    top = [max(0, min(full_h - high, math.floor(b[1]) - 1)) for b in boxes]
    at = torch.tensor([rows, top, left], device=image.device).view(3, -1, 1, 1)
    y = at[1] + torch.arange(high, device=image.device).view(1, high, 1)
    x = at[2] + torch.arange(wide, device=image.device).view(1, 1, wide)
    return at[0], y, x, y + 0.5, x + 0.5


def _shadow(image: Tensor, rows: list[int], shadows: list[tuple[float, float, float, float, float]]) -> None:
    """Darken the ground by soft ellipses: middle x, y, half axes and strength."""
    boxes = [(x - 1.2 * a, y - 1.2 * b, x + 1.2 * a, y + 1.2 * b) for x, y, a, b, _ in shadows]
    window = _window(image, rows, boxes)
    if window is None:
        return
    n, ys, xs, y, x = window
    k = torch.tensor(shadows, dtype=torch.float32, device=image.device).view(-1, 5, 1, 1)
    off = ((x - k[:, 0]) / k[:, 2]) ** 2 + ((y - k[:, 1]) / k[:, 3]) ** 2
    keep = 1.0 - k[:, 4] * ((1.25 - off) / 0.7).clamp(0.0, 1.0)  # [n, h, w]
    for channel in range(3):
        image[n, channel, ys, xs] *= keep


def _body(
    image: Tensor, distance: Tensor | None, mask: Tensor | None, view: View, rows: list[int],
    things: Sequence[Scene | Second], bodies: list[tuple[float, ...]],
) -> None:  # fmt: skip
    kind, facing = things[0].kind, things[0].facing
    half = 0.5 * _breadth(kind, facing) + 0.06
    boxes = [(b[0] - half * b[2], b[1] - 1.03 * b[2], b[0] + half * b[2], b[1] + 0.05 * b[2]) for b in bodies]
    window = _window(image, rows, boxes)
    if window is None:
        return
    n, ys, xs, y, x = window
    k = torch.tensor(bodies, dtype=torch.float32, device=image.device).view(-1, 6, 1, 1)
    times = [view.scenes[row].time for row in rows]
    base = torch.tensor(
        [subject_color(SUBJECTS[t.color], LIGHTS[time]) for t, time in zip(things, times, strict=True)],
        dtype=torch.float32,
        device=image.device,
    ).view(-1, 3, 1, 1)
    spot_x, spot_y = (x - k[:, 0]) / k[:, 2], (k[:, 1] - y) / k[:, 2]
    shape = torch.broadcast_shapes(spot_x.shape, spot_y.shape)
    tint = tinter(times, image.device)
    spot = Spot(spot_x.expand(shape), spot_y.expand(shape), k[:, 2], base, k[:, 3], k[:, 4], facing, tint)
    cover, rgb = PAINTERS[kind](spot)  # [n, h, w], [n, 3, h, w]
    for channel in range(3):
        behind = image[n, channel, ys, xs]
        image[n, channel, ys, xs] = torch.lerp(behind, rgb[:, channel].clamp(0.0, 1.0), cover)
    solid = cover > 0.5
    if mask is not None:
        mask[n, ys, xs] = solid
    if distance is not None:
        distance[n, ys, xs] = torch.where(solid, k[:, 5], distance[n, ys, xs])
