# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What the buttons do. Everything raises one of session.REFUSALS with a sentence, and leaves the node as it was."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping
from typing import Any

import nuke

from . import colour, controls, host, keyframes, knobs, places, readers, takes
from .refusal import Refusal
from .session import attempt, session, tell
from .vendor.placeholder import write_placeholder
from .vendor.plan import plan

RANDOM_SEEDS = 2**31


def generate(node: Any, seed: int | None = None) -> str:
    """Have the node's clip made as its next version, with another seed where one is given. Returns the job's key.

    In Nuke's window this returns at once; in `nuke -t` when the clip is made. Raises Refusal, there for a failure too.
    """
    tagged = _tagged(node)
    asked = knobs.wish(node, knobs.model(node))
    if seed is not None:
        asked["seed"] = seed
    knobs.delivery(node, knobs.start(node), "")  # refused now rather than when the worker is there
    if not asked["prompt"].strip():
        raise Refusal("prompt: it is empty; a sentence that says what is seen is allowed")
    key = secrets.token_hex(8)
    troubles: list[str] = []

    def failed(sentence: str) -> None:
        troubles.append(sentence)
        with host.no_undo():
            tell(node, sentence)

    if not session().controller.is_ready:
        with host.no_undo():
            tell(node, "the worker starts")
    session().with_limits(asked["model"], lambda model: _launch(tagged.node, key, {**asked, "model": model}), failed)
    if not host.is_gui():
        _wait(key, troubles)
    elif troubles:
        raise Refusal(troubles[0])
    return key


def _wait(key: str, troubles: list[str]) -> None:
    """Until the job has ended and the node shows it."""
    jobs = session().controller.jobs
    session().run_until(lambda: troubles or (key in jobs and not jobs[key].is_active))
    session().tick()
    job = jobs.get(key)
    if troubles or job is None or job.state != "done":
        raise Refusal(troubles[0] if troubles or job is None else f"{job.state}: {job.message}")


def _launch(node: Any, key: str, wish: dict[str, Any]) -> None:
    """The worker is ready: what can be refused is, then the node shows the placeholder and the job is sent."""
    now, home, start = session(), places.jobs_home(), knobs.start(node)
    space = colour.chosen(str(node["plate_colorspace"].value()), now.spaces)
    colour.check(readers.of(node)["colorspace"], space)
    limits = now.controller.limits[wish["model"]]
    controls.check(node, wish, limits)
    with host.undo_step("Rushes: generate"):
        footage = controls.render(node, key, wish, plan(wish, limits), start, now.spaces)
        wish["control"] = [*wish["control"], *footage]
        wish["keyframes"] = [*wish["keyframes"], *keyframes.render(node, key, now.spaces)]
        made = plan(wish, limits)
        delivery = knobs.delivery(node, start, space["name"], made.shot["frames"])
        take = takes.new_take(key, wish, home, delivery, start=start, length=made.length, space=space["name"])
        tagged = _tagged(node)
        takes.add(tagged, take)
        picture = write_placeholder(places.root() / "placeholders", made.shot["size"])
        readers.show_placeholder(node, picture, take, now.spaces)
        tell(node, "asked for")
        now.controller.submit(key, wish, home, delivery)
    now.need()


def new_version(node: Any) -> str:
    """Generate with another seed, which the knob then shows."""
    seed = random.randrange(RANDOM_SEEDS)
    key = generate(node, seed)
    node["seed"].setValue(str(seed))
    return key


def wedge(node: Any, count: int) -> list[str]:
    """`count` versions with one seed after the other, from the knob's on. Returns the jobs' keys."""
    if not 1 <= count <= 64:
        raise Refusal(f"wedge: got {count}; 1 to 64 versions are allowed")
    first = knobs.wish(node, knobs.model(node))["seed"]
    return [generate(node, first + offset) for offset in range(count)]


def cancel(node: Any) -> None:
    """Stop all that the node waits for."""
    jobs = session().controller.jobs
    active = [
        take["key"] for take in _tagged(node).data["takes"] if take["key"] in jobs and jobs[take["key"]].is_active
    ]
    if not active:
        raise Refusal("cancel: nothing is being made for this node; Generate makes something")
    for key in active:
        session().cancel(key)


def reattach(node: Any) -> None:
    """Go on with what stopped, and follow what another session left running."""
    if not session().reattach(_tagged(node), is_resuming=True):
        raise Refusal("re-attach: everything that this node asked for is done or being made; nothing is to be taken up")


def restore(node: Any, path: str) -> None:
    """Set the node as it was for a plate of ours, and show the plate. path: one of its frames, or its pattern."""
    tagged = _tagged(node)
    if not path:
        raise Refusal("restore from: it is empty; a frame of a plate that Rushes has written is allowed")
    now, troubles, restored = session(), list[str](), list[bool]()

    def failed(sentence: str) -> None:
        troubles.append(sentence)
        with host.no_undo():
            tell(node, sentence)

    def found(answer: Mapping[str, Any]) -> None:
        _restored(tagged.node, path, answer)
        restored.append(True)

    def ask() -> None:
        now.controller.ask("record", {"path": path}, lambda answer: attempt(lambda: found(answer), failed), failed)

    now.when_ready(ask, failed)
    if not host.is_gui():
        now.run_until(lambda: restored or troubles)
    if troubles:
        raise Refusal(troubles[0])


def _restored(node: Any, path: str, answer: Mapping[str, Any]) -> None:
    with host.undo_step("Rushes: restore"):
        unsaid = knobs.restore(node, answer)
        said = [f"restored from {path}", *unsaid, *answer["notes"]]
        if answer["missing"]:
            said.append(f"the plate has no frame {', '.join(map(str, answer['missing'][:5]))}")
        if answer["first"] is not None and answer["path"].lower().endswith(".exr"):
            readers.show_file(node, answer, session().spaces)
        tell(node, "; ".join(said))


def step_version(node: Any, step: int) -> None:
    """Show another of the node's finished plates. step: 1 the next, -1 the one before."""
    tagged = _tagged(node)
    done = [index for index, take in enumerate(tagged.data["takes"]) if take["state"] == "done"]
    at = tagged.data["take"]
    beyond = [index for index in done if (index > at if step > 0 else index < at)]
    if not beyond:
        raise Refusal(f"version: this node has no {'later' if step > 0 else 'earlier'} one")

    def show() -> None:
        tagged.data["take"] = beyond[0] if step > 0 else beyond[-1]
        with host.undo_step("Rushes: version"):
            session().show_take(tagged)

    session().when_ready(show, lambda sentence: tell(node, sentence))


def _tagged(node: Any) -> takes.Tagged:
    tagged = takes.read(node)
    if tagged is None:
        raise Refusal(f"node: {node.name()} is no node of this version of Rushes; a Rushes node is allowed")
    return tagged


def selected() -> Any:
    """The selected node of ours. Raises Refusal."""
    for node in nuke.selectedNodes():
        if takes.read(node) is not None:
            return node
    raise Refusal("selection: it holds no Rushes node; select one")
