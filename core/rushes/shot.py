# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Shot: what an artist asks for. Standard library only; every room may read this module."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

MAX_SEED = 2**63 - 1  # torch.Generator.manual_seed takes a signed 64-bit integer
MAX_PROMPT = 10_000  # characters; the longest text any supported encoder reads is 512 tokens
MAX_FRAMES = 100_000
MAX_FPS = 1000
MAX_STRENGTH = 100.0  # of a LoRA
MAX_CONTROL = 10.0  # strength of a control pass
MAX_CONTROLS = 16  # passes, and references of one
EXPERTS = ("", "high", "low")
# What a control pass shows. "source": frames that are kept; "reference": no frames, pictures of what shall be seen
CONTROL_KINDS = ("source", "depth", "normal", "pose", "edges", "flow", "grey", "reference")
RECORD_VERSION = 1
# IPTC NewsCodes, digital source type: made by a model that was trained on sampled content
TRAINED_MEDIA = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


class ShotError(ValueError):
    """Bad input. The message is one sentence that names the argument, what was got and what is allowed."""

    def renamed(self, names: Mapping[str, str]) -> ShotError:
        """The same of an argument that a host calls otherwise. names: ours -> the host's."""
        argument, colon, rest = str(self).partition(":")
        return ShotError(names[argument] + colon + rest) if argument in names else self


@dataclass(frozen=True)
class Keyframe:
    """A picture that the shot must pass through at a frame.

    frame: index from 0; negative counts from the end (-1 is the last frame).
    image: path of a picture in any format OpenImageIO reads.
    sha256: digest of the file, filled in by `sealed`; a later run refuses a file that has changed.
    """

    frame: int
    image: str
    sha256: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.frame, bool) or not isinstance(self.frame, int):
            raise ShotError(f"keyframe: the frame is {self.frame!r}; a whole number is allowed (-1 is the last frame)")
        if not isinstance(self.image, str) or not self.image:
            raise ShotError(f"keyframe: the image is {self.image!r}; a file name is allowed")

    def sealed(self) -> Keyframe:
        """This keyframe with the file's SHA-256. Raises ShotError when the file is missing or has changed."""
        try:
            digest = hashlib.sha256(Path(self.image).read_bytes()).hexdigest()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise ShotError(
                f"keyframe: {self.image} cannot be read ({reason}); an existing picture is allowed"
            ) from error
        if self.sha256 and digest != self.sha256:
            raise ShotError(
                f"keyframe: {self.image} is not the picture this shot was made with (its SHA-256 starts {digest[:8]}, "
                f"the shot's {self.sha256[:8]}); put the old picture back or give the keyframe anew"
            )
        return dataclasses.replace(self, sha256=digest)


@dataclass(frozen=True)
class Lora:
    """A file that changes the model for this shot.

    path: of a .safetensors file. strength: what the change is multiplied by; 0 is none, below 0 is away from it.
    expert: "high" or "low" for one of a model's two, "" for the one that the file's name says, else for both.
    sha256: digest of the file, filled in by `Engine.resolve`; a later run refuses a file that has changed.
    """

    path: str
    strength: float = 1.0
    expert: str = ""
    sha256: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ShotError(f"lora: the file is {self.path!r}; a file name is allowed")
        strength = self.strength
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not abs(strength) <= MAX_STRENGTH:
            raise ShotError(
                f"lora: the strength is {strength!r}; a number from {-MAX_STRENGTH} to {MAX_STRENGTH} is allowed"
            )
        if self.expert not in EXPERTS:
            raise ShotError(f"lora: the expert is {self.expert!r}; high, low, or none for both is allowed")
        object.__setattr__(self, "strength", float(strength))


@dataclass(frozen=True)
class Control:
    """Footage that steers the shot, as Wan VACE takes it.

    kind: one of CONTROL_KINDS. path: a picture, a sequence's pattern or a movie that `rushes.media.read_frames` reads;
    none for "reference". A picture holds for the whole clip; where other footage has ended, the model is free. An EXR
    of "depth" holds distances, other depth is white where it is near; both are stretched over the whole shot.
    mask: footage that is white where a guide holds, and where frames of "source" are made anew; all of a guide and
    nothing of a source without it. strength: 0 is none. references: pictures of what shall be seen, on white.
    start: the frame of the shot, from 0, at which the footage and the mask begin.
    sha256: digests of path, mask and references, filled in by `sealed`; a later run refuses footage that has changed.
    """

    kind: str
    path: str = ""
    strength: float = 1.0
    mask: str = ""
    references: tuple[str, ...] = ()
    start: int = 0
    sha256: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in CONTROL_KINDS:
            raise ShotError(f"control: got {self.kind!r}; {', '.join(CONTROL_KINDS)} are allowed")
        for name in ("references", "sha256"):
            values = getattr(self, name)
            if isinstance(values, str) or not all(isinstance(value, str) for value in values):
                raise ShotError(f"control: {name} are {values!r}; a list of texts is allowed")
            object.__setattr__(self, name, tuple(values))
        if not isinstance(self.path, str) or not isinstance(self.mask, str) or not all(self.references):
            raise ShotError(f"control: got {self.path or self.mask!r}; names of files are allowed")
        if not self.path and (self.kind != "reference" or not self.references):
            lacks = "picture (--reference IMAGE)" if self.kind == "reference" else "footage"
            raise ShotError(f"control: {self.kind} is given without any {lacks}; a name of a file is allowed")
        if self.kind == "reference" and (self.path or self.mask):
            raise ShotError(f"control: got {self.path or self.mask!r} with reference; pictures alone are allowed")
        strength = self.strength
        if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not 0 <= strength <= MAX_CONTROL:
            raise ShotError(f"control: the strength is {strength!r}; a number from 0 to {MAX_CONTROL:g} is allowed")
        object.__setattr__(self, "strength", float(strength))
        _check_int("control: the start", self.start, 0, MAX_FRAMES)
        if len(self.references) > MAX_CONTROLS:
            raise ShotError(f"control: got {len(self.references)} references; up to {MAX_CONTROLS} are allowed")

    @property
    def files(self) -> tuple[str, ...]:
        """Path, mask and references, as far as they are given."""
        return tuple(name for name in (self.path, self.mask, *self.references) if name)

    def sealed(self, digest: Callable[[str], str]) -> Control:
        """This control with the SHA-256 of its files, by `digest` of a name. ShotError for one that has changed."""
        found = tuple(digest(name) for name in self.files)
        for name, now, then in zip(self.files, found, self.sha256 or found, strict=False):
            if now != then:
                raise ShotError(
                    f"control: {name} is not the footage this shot was made with (its SHA-256 starts {now[:8]}, the "
                    f"shot's {then[:8]}); put the old footage back or give the control anew"
                )
        return dataclasses.replace(self, sha256=found)


@dataclass(frozen=True)
class Shot:
    """One request for a clip. `None` means the model's own default, filled in by `Engine.resolve`.

    prompt, negative: text; size: (width, height) in pixels; frames: number of frames; fps: exact frame rate;
    seed: 0 ... 2^63 - 1; steps: denoising steps; guidance: classifier-free guidance, 1 or less turns it off, or a pair
    of them for the high-noise and the low-noise expert of a model that has two;
    model: a name, folder or .safetensors file; keyframes: pictures the shot must pass through; loras: what is put on
    the model, each a `Lora` or its text, see `parse_lora`; control: footage that steers a VACE model;
    shift: how far the schedule is bent towards noise, 0.01 ... 100.
    For speed, at the cost of an error: reuse: steps in which the first block's answer has changed by less than this
    share take the other blocks' from before, 0 for none; guided: share of the steps, from the first one, that guidance
    is computed in.
    Raises ShotError for a value that no model allows; what one model allows is checked by `Engine.resolve`.
    """

    prompt: str
    negative: str | None = None
    size: tuple[int, int] | None = None
    frames: int | None = None
    fps: Fraction | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | tuple[float, float] | None = None
    model: str = "starter"
    keyframes: tuple[Keyframe, ...] = ()
    loras: tuple[Lora, ...] = ()
    control: tuple[Control, ...] = ()
    shift: float | None = None
    reuse: float = 0.0
    guided: float = 1.0

    def __post_init__(self) -> None:
        _check_text("prompt", self.prompt, may_be_empty=False)
        if self.negative is not None:
            _check_text("negative", self.negative, may_be_empty=True)
        if self.size is not None:
            object.__setattr__(self, "size", _checked_size(self.size))
        if self.frames is not None:
            _check_int("frames", self.frames, 1, MAX_FRAMES)
        if self.fps is not None:
            object.__setattr__(self, "fps", parse_fps(self.fps))
        _check_int("seed", self.seed, 0, MAX_SEED)
        if self.steps is not None:
            _check_int("steps", self.steps, 1, 1000)
        if self.guidance is not None:
            object.__setattr__(self, "guidance", _checked_guidance(self.guidance))
        if self.shift is not None:
            object.__setattr__(self, "shift", _checked_shift(self.shift))
        if not isinstance(self.model, str) or not self.model:
            raise ShotError(f"model: got {self.model!r}; a name, a folder or a .safetensors file is allowed")
        object.__setattr__(self, "keyframes", tuple(self.keyframes))
        loras = tuple(parse_lora(lora) if isinstance(lora, str) else lora for lora in self.loras)
        object.__setattr__(self, "loras", loras)
        object.__setattr__(self, "control", tuple(self.control))
        if len(self.control) > MAX_CONTROLS:
            raise ShotError(f"control: got {len(self.control)} passes; up to {MAX_CONTROLS} are allowed")
        for name in ("reuse", "guided"):
            share = getattr(self, name)
            if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
                raise ShotError(f"{name}: got {share!r}; a share from 0 to 1 is allowed")
            object.__setattr__(self, name, float(share))

    @property
    def guidance_pair(self) -> tuple[float, float]:
        """Guidance of the high-noise and the low-noise expert; twice the same for one number, 0 for none."""
        return self.guidance if isinstance(self.guidance, tuple) else (self.guidance or 0.0,) * 2

    @property
    def is_guided(self) -> bool:
        """Whether the negative prompt counts, anywhere."""
        return max(self.guidance_pair) > 1

    def replace(self, **changes: Any) -> Shot:
        """A copy with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; the frame rate is a string such as "24000/1001"."""
        fields = dataclasses.asdict(self)
        fields["fps"] = None if self.fps is None else str(self.fps)
        fields["size"] = None if self.size is None else list(self.size)
        fields["guidance"] = list(self.guidance) if isinstance(self.guidance, tuple) else self.guidance
        fields["keyframes"] = [dataclasses.asdict(keyframe) for keyframe in self.keyframes]
        fields["loras"] = [dataclasses.asdict(lora) for lora in self.loras]
        fields["control"] = [
            {**dataclasses.asdict(one), "references": list(one.references), "sha256": list(one.sha256)}
            for one in self.control
        ]
        return {"version": RECORD_VERSION, **fields}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Shot:
        """Read `to_dict`'s form. Raises ShotError for a newer version, an unknown field or a wrong type."""
        if not isinstance(fields, Mapping):
            raise ShotError(f"shot: got a {type(fields).__name__}; a JSON object is allowed")
        values = dict(fields)
        version = values.pop("version", RECORD_VERSION)
        if not isinstance(version, int) or version > RECORD_VERSION:
            raise ShotError(
                f"shot: its version is {version!r}, this Rushes reads up to {RECORD_VERSION}; update Rushes"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise ShotError(f"shot: unknown field {unknown[0]!r}; allowed are {', '.join(sorted(known))}")
        if "prompt" not in values:
            raise ShotError("shot: the field 'prompt' is missing; every shot has one")
        try:
            values["keyframes"] = tuple(Keyframe(**keyframe) for keyframe in values.get("keyframes") or ())
        except TypeError as error:
            raise ShotError("keyframe: got other fields; frame, image and sha256 are allowed") from error
        try:
            values["loras"] = tuple(Lora(**lora) for lora in values.get("loras") or ())
        except TypeError as error:
            raise ShotError("lora: got other fields; path, strength, expert and sha256 are allowed") from error
        try:
            values["control"] = tuple(Control(**control) for control in values.get("control") or ())
        except TypeError as error:
            allowed = ", ".join(field.name for field in dataclasses.fields(Control))
            raise ShotError(f"control: got other fields; {allowed} are allowed") from error
        return cls(**values)

    def to_json(self) -> str:
        """One line of ASCII JSON."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Shot:
        """Read `to_json`'s form. Raises ShotError for text that is not such a record."""
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ShotError(f"shot: this is not JSON ({error.msg} at character {error.pos})") from error
        return cls.from_dict(fields)


def parse_fps(value: object) -> Fraction:
    """An exact rate from 24, 23.976, "24000/1001" or a Fraction; NTSC decimals become their exact ratio."""
    try:
        if isinstance(value, bool):
            raise TypeError
        rate = Fraction(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise ShotError(
            f"fps: got {value!r}; a number or a ratio such as 24, 23.976 or 24000/1001 is allowed"
        ) from None
    if not 0 < rate <= MAX_FPS:
        raise ShotError(f"fps: got {value}; above 0 up to {MAX_FPS} is allowed")
    for nominal in (24, 30, 48, 60, 120):
        exact = Fraction(nominal * 1000, 1001)
        # 23.976, 23.98, 29.97, 59.94 ... are how people write the NTSC rates
        if rate != exact and rate.denominator > 1 and abs(rate - exact) < Fraction(1, 200):
            return exact
    return rate.limit_denominator(100_000)


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from "832x480". Raises ShotError."""
    width, cross, height = text.lower().partition("x")
    if not cross or not width.strip().isdigit() or not height.strip().isdigit():
        raise ShotError(f"size: got {text!r}; WIDTHxHEIGHT such as 128x80 is allowed")
    return _checked_size((int(width), int(height)))


def _check_text(name: str, value: object, *, may_be_empty: bool) -> None:
    if not isinstance(value, str):
        raise ShotError(f"{name}: got a {type(value).__name__}; text is allowed")
    if not may_be_empty and not value.strip():
        raise ShotError(f"{name}: it is empty; a sentence that says what is seen is allowed")
    if len(value) > MAX_PROMPT:
        raise ShotError(f"{name}: it has {len(value)} characters; up to {MAX_PROMPT} are allowed")
    if "\0" in value:
        raise ShotError(f"{name}: it holds a NUL character; plain text is allowed")


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ShotError(f"{name}: got {value!r}; a whole number from {low} to {high} is allowed")


def _checked_size(size: object) -> tuple[int, int]:
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise ShotError(f"size: got {size!r}; (width, height) in pixels is allowed")
    for name, value in zip(("width", "height"), size, strict=True):
        if isinstance(value, bool) or not isinstance(value, int) or not 8 <= value <= 16_384:
            raise ShotError(f"size: the {name} is {value!r}; a whole number from 8 to 16384 is allowed")
    return (size[0], size[1])


def _checked_guidance(value: object) -> float | tuple[float, float]:
    values = value if isinstance(value, (tuple, list)) else (value,)
    good = all(isinstance(one, (int, float)) and not isinstance(one, bool) and 0 <= one <= 100 for one in values)
    if not good or len(values) not in (1, 2) or (len(values) == 1 and values is value):
        raise ShotError(
            f"guidance: got {value!r}; a number from 0 to 100 is allowed (1 or less turns it off), or two of them for "
            "the high-noise and the low-noise expert"
        )
    return float(value) if isinstance(value, (int, float)) else (float(values[0]), float(values[1]))


def _checked_shift(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.01 <= value <= 100:
        raise ShotError(f"shift: got {value!r}; a number from 0.01 to 100 is allowed")
    return float(value)


def parse_guidance(text: str) -> float | tuple[float, float]:
    """A number, or HIGH,LOW for a model of two experts; their range is Shot's to check. Raises ShotError."""
    try:
        high, comma, low = text.partition(",")
        return (float(high), float(low)) if comma else float(high)
    except ValueError:
        raise ShotError(f"guidance: got {text!r}; a number, or two as in 4,3, is allowed") from None


def format_guidance(guidance: float | tuple[float, float]) -> str:
    """As the command line takes it: "5", or "4,3"."""
    return ",".join(f"{one:g}" for one in (guidance if isinstance(guidance, tuple) else (guidance,)))


def parse_lora(text: str) -> Lora:
    """A LoRA from FILE, FILE:STRENGTH, or either after high= or low= for one of two experts. Raises ShotError."""
    expert, equals, rest = text.partition("=")
    if not equals or expert not in EXPERTS[1:]:
        expert, rest = "", text
    file, colon, number = rest.rpartition(":")
    try:
        strength = float(number) if colon else 1.0
    except ValueError:  # a colon in the name, such as that behind a drive's letter
        file, strength = rest, 1.0
    return Lora(file if colon else rest, strength, expert)
