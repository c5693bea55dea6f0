# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The end that `generate` and `decode` share: decode, write, tell. Torch is imported only when it must be."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rushes.commands.reporting import Reporter
from rushes.commands.stopping import Stop, Stopped
from rushes.shot import Shot

if TYPE_CHECKING:
    import torch

    from rushes.engine import Engine


@dataclass(frozen=True)
class Delivery:
    """Where the frames go. paths: as given with -o; form: fields of OutputFormat that are not its defaults."""

    paths: tuple[str, ...]
    overwrite: bool = False
    form: Mapping[str, Any] = field(default_factory=dict)

    def check(self, shot: Shot) -> None:
        """Raise ShotError if any of the outputs cannot be written. The shot need not be resolved."""
        from rushes.media import check_outputs

        form = {"colorspace": None, **self.form}
        check_outputs(self.paths, shot.frames, self.overwrite, size=shot.size, **form)

    @property
    def wants_pictures(self) -> bool:
        """False when only latents are asked for: then nothing needs decoding."""
        return not all(path.lower().endswith(".safetensors") for path in self.paths)

    def write(
        self, engine: Engine, latents: torch.Tensor, record: Mapping[str, Any], reporter: Reporter, stop: Stop
    ) -> list[str]:
        """Decode and write at the same time; on any exception, Stopped included, nothing is left behind.

        latents: [1, channels, latent_frames, h, w]. Returns the names of the files.
        """
        from rushes.media import open_outputs

        with open_outputs(
            self.paths,
            record,
            overwrite=self.overwrite,
            latents=latents.numpy(force=True),
            **self.form,
        ) as outputs:
            if self.wants_pictures:
                for frames in engine.decode(latents, on_progress=reporter.progress, cancel=stop.event):
                    outputs.write(frames)  # [n, height, width, 3]
            stop.check()
        return [str(path) for path in outputs.paths]


@contextmanager
def cancelled_means_stopped(stop: Stop) -> Iterator[None]:
    """The engine's Cancelled, raised because `stop` was set, becomes Stopped."""
    from rushes.progress import Cancelled

    try:
        yield
    except Cancelled as error:
        raise Stopped(stop.signal) from error


@contextmanager
def warnings_reported(reporter: Reporter) -> Iterator[None]:
    """Python's warnings, ours and the libraries', come out as the command's own: one line each."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, category, *_args, **_kwargs: reporter.warning(
            " ".join(str(message).split()), kind=category.__name__
        )
        yield


def model_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """A record's `model`; empty when the file has none, which then reads as unknown."""
    model = record.get("model")
    return model if isinstance(model, Mapping) else {}


def warn_of_other_model(expected: Mapping[str, Any], record: Mapping[str, Any], reporter: Reporter) -> None:
    """One warning if the weights loaded now are not those that made the file. Both: a record's `model`."""
    before, now = str(expected.get("sha256", "")), str(record["model"]["sha256"])
    if before != now:
        reporter.warning(
            f"the file was made with other weights of {expected.get('name', 'its model')} "
            f"(SHA-256 {before[:8] or 'unknown'}, now {now[:8]}): the bits may differ",
            kind="model",
        )
    here = {lora["sha256"] for lora in record["model"].get("loras", ())}
    made_with = [lora for lora in expected.get("loras", ()) if isinstance(lora, Mapping)]
    if missing := [str(lora.get("name")) for lora in made_with if lora.get("sha256") not in here]:
        reporter.warning(
            f"the file was made with LoRAs ({', '.join(missing)}), which are not on the model now: the clip will be "
            "another one; --lora FILE:STRENGTH puts them on",
            kind="model",
        )


def warn_of_unknown_words(words: Sequence[str], model: str, reporter: Reporter) -> None:
    """One warning that names the words the model has never seen; they are never dropped silently."""
    if words:
        reporter.warning(f"the {model} does not know: {', '.join(words)}", kind="words", words=list(words))
