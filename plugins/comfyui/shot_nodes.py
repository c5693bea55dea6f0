# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes Shot and Rushes Keyframe: what is asked for."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from rushes.shot import MAX_FRAMES, MAX_SEED, Control, Keyframe, Shot, ShotError

from .host import plain, spoken_plainly
from .pictures import KEYFRAMES, stored
from .sockets import CATEGORY, ControlSocket, KeyframesSocket, ShotSocket

PIXEL_STEP = 16  # every model takes multiples of it; some of more, which the model itself refuses
FRAME_STEP = 4
MAX_SIDE = 16_384


class RushesShot(io.ComfyNode):
    """One request for a clip. 0 means the model's own default."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesShot",
            display_name="Rushes Shot",
            category=CATEGORY,
            description="What the clip shows, how large and how long it is. 0 is the model's own default.",
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a red ball rolls to the right across a desert at sunset, slow push in",
                    tooltip="A sentence that says what is seen (up to 10,000 characters; a model reads 512 tokens).",
                ),
                io.String.Input(
                    "negative",
                    multiline=True,
                    default="",
                    tooltip="What should not be seen. Counts only while guidance is above 1. Empty: nothing.",
                ),
                *_numbers(),
                KeyframesSocket.Input(
                    "keyframes", optional=True, tooltip="Pictures that the shot passes through, from Rushes Keyframe."
                ),
                ControlSocket.Input(
                    "control", optional=True, tooltip="What steers the shot of a VACE model, from Rushes Control."
                ),
                *_speed(),
            ],
            outputs=[ShotSocket.Output(display_name="shot", tooltip="For Rushes Generate.")],
        )

    @classmethod
    def validate_inputs(cls, prompt: str | None, width: int, height: int, frames: int, fps: float) -> bool | str:
        try:
            _check_shape(width, height, frames)
            if prompt is not None:
                Shot(prompt, fps=fps or None)
        except ShotError as error:
            return plain(error)
        return True

    @classmethod
    def execute(
        cls,
        prompt: str,
        negative: str,
        width: int,
        height: int,
        frames: int,
        fps: float,
        seed: int,
        steps: int,
        guidance: float,
        keyframes: tuple[Keyframe, ...] = (),
        control: tuple[Control, ...] = (),
        reuse: float = 0.0,
        guided: float = 1.0,
    ) -> io.NodeOutput:
        with spoken_plainly():
            _check_shape(width, height, frames)
            shot = Shot(
                prompt,
                negative,
                size=(width, height) if width and height else None,
                frames=frames or None,
                fps=fps or None,
                seed=seed,
                steps=steps or None,
                guidance=guidance or None,
                keyframes=keyframes or (),
                control=control or (),
                reuse=reuse,
                guided=guided,
            )
        return io.NodeOutput(shot)


def _numbers() -> list[io.Input]:
    return [
        io.Int.Input(
            "width",
            default=0,
            min=0,
            max=MAX_SIDE,
            step=PIXEL_STEP,
            tooltip="Pixels, in multiples of 16 (of 32 for Wan 2.2 5B). 0, with height 0: the model's own size.",
        ),
        io.Int.Input(
            "height",
            default=0,
            min=0,
            max=MAX_SIDE,
            step=PIXEL_STEP,
            tooltip="Pixels, in multiples of 16 (of 32 for Wan 2.2 5B). 0, with width 0: the model's own size.",
        ),
        io.Int.Input(
            "frames",
            default=0,
            min=0,
            max=MAX_FRAMES,
            tooltip="Length in frames: 1, 5, 9 ... (4n+1); 1 is a still. 0: the model's own length.",
        ),
        io.Float.Input(
            "fps",
            default=0.0,
            min=0.0,
            max=1000.0,
            step=0.001,
            round=False,
            tooltip="Frames a second (up to 1000). 23.976 and 29.97 mean the exact NTSC rates. 0: the model's own.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=MAX_SEED,
            control_after_generate=True,
            tooltip="Start of the noise (0 to 2^63 - 1). The same shot with the same seed gives the same bits.",
        ),
        io.Int.Input(
            "steps", default=0, min=0, max=1000, tooltip="Denoising steps (1 to 1000). 0: the model's own number."
        ),
        io.Float.Input(
            "guidance",
            default=0.0,
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How closely the prompt is followed (classifier-free guidance, up to 100). 1 turns it off and "
            "halves the time. 0: the model's own.",
        ),
    ]


def _speed() -> list[io.Input]:
    return [
        io.Float.Input(
            "reuse",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            optional=True,
            tooltip="Faster, with an error: steps in which the first block's answer has changed by less than this "
            "share take the other blocks' from before (0 to 1, such as 0.1). 0: off.",
        ),
        io.Float.Input(
            "guided",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.05,
            optional=True,
            tooltip="Faster, with an error: share of the steps, from the first one, that guidance is computed in (0 to "
            "1, such as 0.6). 1: all of them.",
        ),
    ]


def _check_shape(width: int | None, height: int | None, frames: int | None) -> None:
    """Raise ShotError for what no model takes. None comes over a wire, and is looked at when it is there."""
    for name, side in (("width", width), ("height", height)):
        _check_step(name, side, PIXEL_STEP, 0, MAX_SIDE, "pixels")
    if None not in (width, height) and bool(width) != bool(height):
        name, other = ("width", "height") if not width else ("height", "width")
        raise ShotError(f"{name}: got 0 with a {other} of its own; both or none are allowed")
    _check_step("frames", frames, FRAME_STEP, 1, MAX_FRAMES, "frames")


def _check_step(name: str, value: int | None, step: int, rest: int, most: int, unit: str) -> None:
    """Raise ShotError for a value that is neither 0 (the default) nor n * step + rest; it names the neighbours."""
    if value is None or value == 0 or (0 < value <= most and value % step == rest):
        return
    allowed = f"{step}n+{rest}" if rest else f"multiples of {step}"
    low = max(rest or step, (value - rest) // step * step + rest)
    near = f"{low} or {low + step}" if 0 < value < most else f"up to {most}"
    raise ShotError(f"{name}: got {value}; {allowed} {unit}, such as {near}, or 0 for the model's own are allowed")


class RushesKeyframe(io.ComfyNode):
    """A picture at a frame; a chain of them is a list."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="RushesKeyframe",
            display_name="Rushes Keyframe",
            category=CATEGORY,
            description="A picture that the shot passes through: at frame 0 image-to-video, at 0 and -1 a connection.",
            inputs=[
                io.Image.Input(
                    "image",
                    tooltip="One picture of any size: it is scaled to fill the frame and cropped, never stretched.",
                ),
                io.Int.Input(
                    "frame",
                    default=0,
                    min=-MAX_FRAMES,
                    max=MAX_FRAMES,
                    tooltip="Frame number from 0; negative counts from the end (-1 is the last frame). "
                    "Two keyframes need 4 frames between them.",
                ),
                KeyframesSocket.Input(
                    "previous", optional=True, tooltip="Further keyframes, from another Rushes Keyframe."
                ),
            ],
            outputs=[
                KeyframesSocket.Output(
                    display_name="keyframes", tooltip="For Rushes Shot, or the next Rushes Keyframe."
                )
            ],
        )

    @classmethod
    def execute(cls, image: Any, frame: int, previous: tuple[Keyframe, ...] = ()) -> io.NodeOutput:
        with spoken_plainly():
            if len(image) != 1:
                raise ShotError(f"image: got a batch of {len(image)}; one picture is allowed")
            path = stored(image[..., :3].numpy(force=True), KEYFRAMES)
            return io.NodeOutput((*(previous or ()), Keyframe(frame, path)))
