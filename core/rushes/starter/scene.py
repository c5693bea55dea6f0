# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The record of one clip of the starter's world, and where camera and subject are at any moment of it.

World: X right, Y up, Z forward, ground at Y = 0, lengths in metres. The camera stands at X = Z = 0 in the
middle of its move. Screen: u to the right and v down, both in frame heights, (0, 0) the middle of the frame.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

TIMES = ("day", "sunset", "dawn", "night")
SETTINGS = ("desert", "snow", "grass", "sea", "city", "hills", "mountains", "forest")
KINDS = ("ball", "cube", "cone", "cylinder", "car", "person", "tree")
COLORS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "black")
MOTIONS = ("still", "left", "right", "rise", "fall", "bounce", "approach", "recede")
CAMERAS = ("static", "pan_left", "pan_right", "tilt_up", "tilt_down", "push_in", "pull_out", "orbit")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "time": TIMES, "setting": SETTINGS, "kind": KINDS, "color": COLORS, "motion": MOTIONS, "camera": CAMERAS,
}  # fmt: skip
FACINGS = ("left", "right", "front", "back")

FOCAL = 1.3
"""Focal length in frame heights: 42 degrees of vertical view, 63 horizontally at 16:10."""
FPS = 12
BACKDROP = 2.0
"""`shifts` watches a point of the world this many times as far away as the subject."""
WIDTHS = {"ball": 1.0, "cube": 0.94, "cone": 0.94, "cylinder": 0.72, "car": 2.05, "person": 0.5, "tree": 0.84}
"""Widths of the kinds in heights of themselves (a car from the side)."""


@dataclass(frozen=True)
class Second:
    """A second subject that stands still on the ground: place x, z and height `size` in metres."""

    kind: str
    color: str
    x: float
    z: float
    size: float
    facing: str = "left"


@dataclass(frozen=True)
class Scene:
    """Everything that determines a clip; angles in radians, lengths in metres, rates per second."""

    time: str
    setting: str
    kind: str
    color: str
    motion: str
    camera: str
    second: Second | None = None
    frames: int = 33
    fps: int = FPS
    camera_height: float = 1.4
    tilt: float = 0.0
    """Tangent of the upward tilt at frame 0; the horizon lies at v = focal * tilt."""
    turn: float = 0.0
    """Yaw (or place on the orbit) at frame 0; to the right is positive."""
    camera_rate: float = 0.0
    """Speed of the camera's move: yaw, tangent of tilt, metres of dolly, or angle on the orbit."""
    zoom_rate: float = 0.0
    """Change of the logarithm of the focal length, beside a dolly."""
    pivot: float = 6.0
    """Distance of the point that an orbit goes around."""
    x: float = 0.0
    z: float = 6.0
    size: float = 1.5
    """Height of the subject."""
    speed: float = 0.0
    lift: float = 0.0
    """Height above ground at frame 0 (rise, fall), or of the hops (bounce)."""
    period: float = 1.0
    """Time of one hop, or until a fall ends, in seconds."""
    phase: float = 0.0
    """Where in a hop (and in a stride) frame 0 lies, 0 to 1."""
    facing: str = "left"
    sun_azimuth: float = 0.3
    sun_elevation: float = 0.25
    layer_seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in ATTRIBUTES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if self.facing not in FACINGS:
            raise ValueError(f"facing is {self.facing!r}; allowed: {', '.join(FACINGS)}")
        if self.frames < 1:
            raise ValueError(f"frames is {self.frames}; allowed: 1 or more")

    def replace(self, **changes: Any) -> Scene:
        """The same scene with other values."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`; a key that Scene does not know raises TypeError."""
        second = values.get("second")
        return cls(**{**values, "second": Second(**second) if second else None})

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Scene:
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))


@dataclass(frozen=True)
class Camera:
    """The camera at one moment; tilt is a lens shift, so that upright things stay upright."""

    x: float
    y: float
    z: float
    yaw: float
    tilt: float
    focal: float

    @property
    def horizon(self) -> float:
        """v of the horizon."""
        return self.focal * self.tilt

    def project(self, point: tuple[float, float, float]) -> tuple[float, float, float]:
        """Screen u, v and the depth in metres of a point of the world."""
        forward, right = (math.sin(self.yaw), math.cos(self.yaw)), (math.cos(self.yaw), -math.sin(self.yaw))
        dx, dz = point[0] - self.x, point[2] - self.z
        depth = max(dx * forward[0] + dz * forward[1], 0.2)
        u = self.focal * (dx * right[0] + dz * right[1]) / depth
        return u, self.horizon + self.focal * (self.y - point[1]) / depth, depth


def camera_at(scene: Scene, frame: float) -> Camera:
    """Where the camera is at a frame."""
    t, move = frame / scene.fps, scene.camera
    x = z = 0.0
    yaw, tilt, focal = scene.turn, scene.tilt, FOCAL * math.exp(scene.zoom_rate * frame / scene.fps)
    if move in ("pan_left", "pan_right"):
        yaw += scene.camera_rate * t
    elif move in ("tilt_up", "tilt_down"):
        tilt += scene.camera_rate * t
    elif move in ("push_in", "pull_out"):
        z = scene.camera_rate * t
    elif move == "orbit":
        yaw += scene.camera_rate * t
        x, z = -scene.pivot * math.sin(yaw), scene.pivot * (1.0 - math.cos(yaw))
    return Camera(x, scene.camera_height, z, yaw, tilt, focal)


def subject_at(scene: Scene, frame: float) -> tuple[float, float, float]:
    """Where the foot of the subject is at a frame: X, Y, Z."""
    t, x, y, z = frame / scene.fps, scene.x, 0.0, scene.z
    if scene.motion in ("left", "right"):
        x += scene.speed * t * (1.0 if scene.motion == "right" else -1.0)
    elif scene.motion == "rise":
        y = scene.lift + scene.speed * t
    elif scene.motion == "fall":
        # A start that is not from rest, so that the first window of frames already shows the fall.
        s = min(t / scene.period, 1.0)
        y = scene.lift * (1.0 - 0.35 * s - 0.65 * s * s)
    elif scene.motion == "bounce":
        s = (t / scene.period + scene.phase) % 1.0
        y = 4.0 * scene.lift * s * (1.0 - s)
    elif scene.motion in ("approach", "recede"):
        camera = camera_at(scene, 0)
        dx, dz = x - camera.x, z - camera.z
        step = scene.speed * t * (1.0 if scene.motion == "recede" else -1.0) / math.hypot(dx, dz)
        x, z = x + step * dx, z + step * dz
    return x, y, z


def shift_at(scene: Scene, frame: float) -> tuple[float, float, float]:
    """What the camera does to the backdrop between frame 0 and a frame: right, down, log zoom.

    Watched is the point of the world in the middle of frame 0, BACKDROP times as far as the subject.
    Right and down in frame heights.
    """
    first, now = camera_at(scene, 0), camera_at(scene, frame)
    far = BACKDROP * scene.z
    point = (
        first.x + far * math.sin(first.yaw),
        first.y + far * first.horizon / first.focal,
        first.z + far * math.cos(first.yaw),
    )
    u0, v0, depth0 = first.project(point)
    u, v, depth = now.project(point)
    return u - u0, v - v0, math.log(now.focal * depth0 / (first.focal * depth))
