# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""As much TCL as a script file and a text knob need: words, quoting, and what `[...]` and `$...` turn into."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Callable
from typing import Any

_ESCAPED = {"n": "\n", "t": "\t", "r": "\r"}
_BARE = re.compile(r"[A-Za-z0-9_.,:/%+@~*?=<>-][A-Za-z0-9_.,:/%#+@~*?=<>-]*")


class TclError(RuntimeError):
    """Text that cannot be taken apart."""


def quote(text: str) -> str:
    """One word of a script file: bare where possible, otherwise in quotes with everything escaped that TCL reads."""
    if _BARE.fullmatch(text):
        return text
    escaped = re.sub(r'[\\"\[\]${}]', lambda match: "\\" + match[0], text)
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + '"'


def braced(words: list[str]) -> str:
    """A list in braces."""
    return "{" + " ".join(quote(word) if not word.startswith("{") else word for word in words) + "}"


def _closing(text: str, start: int, opener: str, closer: str) -> int:
    """The index of the closer that belongs to the opener at start."""
    depth, index = 0, start
    while index < len(text):
        if text[index] == "\\":
            index += 1
        elif text[index] == opener:
            depth += 1
        elif text[index] == closer:
            depth -= 1
            if not depth:
                return index
        index += 1
    raise TclError(f"{opener} without {closer}: {text[start : start + 40]!r}")


def unescape(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPED.get(match[1], match[1]), text, flags=re.DOTALL)


def _word(text: str, index: int) -> tuple[str, int]:
    """The word that starts at index, without its quotes or braces, and the index behind it."""
    if text[index] == "{":
        end = _closing(text, index, "{", "}")
        return text[index + 1 : end], end + 1
    if text[index] == '"':
        end = index + 1
        while end < len(text) and text[end] != '"':
            end += 2 if text[end] == "\\" else 1
        if end >= len(text):
            raise TclError(f"a quote without its end: {text[index : index + 40]!r}")
        return unescape(text[index + 1 : end]), end + 1
    end = index
    while end < len(text) and not text[end].isspace() and text[end] != ";":
        if text[end] == "\\":
            end += 2
        elif text[end] == "[":
            end = _closing(text, end, "[", "]") + 1
        else:
            end += 1
    return unescape(text[index:end]), end


def commands(text: str) -> list[list[str]]:
    """A script as commands of words. Lines that start with # are comments."""
    found: list[list[str]] = []
    line: list[str] = []
    index = 0
    while index < len(text):
        char = text[index]
        if char in "\n;":
            if line:
                found.append(line)
            line, index = [], index + 1
        elif char.isspace():
            index += 1
        elif char == "#" and not line:
            end = text.find("\n", index)
            index = len(text) if end < 0 else end
        else:
            word, index = _word(text, index)
            line.append(word)
    return [*found, line] if line else found


def words(text: str) -> list[str]:
    """A list as its words."""
    return [word for command in commands(text.replace("\n", " ")) for word in command]


def substitute(text: str, call: Callable[[list[str]], str]) -> str:
    """TCL's substitution: backslashes go, [commands] are called, $variables are looked up. TclError if one fails."""
    made, index = [], 0
    while index < len(text):
        char = text[index]
        if char == "\\" and index + 1 < len(text):
            made.append(_ESCAPED.get(text[index + 1], text[index + 1]))
            index += 2
        elif char == "[":
            end = _closing(text, index, "[", "]")
            inner = commands(text[index + 1 : end])
            values = [call([substitute(word, call) for word in command]) for command in inner]
            made.append(values[-1] if values else "")
            index = end + 1
        elif char == "$" and (match := re.compile(r"\$(\w+|\{[^}]*\})").match(text, index)):
            made.append(_variable(match[1].strip("{}")))
            index = match.end()
        else:
            made.append(char)
            index += 1
    return "".join(made)


def _variable(name: str) -> str:
    raise TclError(f'can\'t read "{name}": no such variable')


def evaluate(text: str, node: Any) -> str:
    """The value of an EvalString knob with this text.

    What fails to evaluate leaves an empty string, and a line in the session's tcl_errors. (An assumption; whatever the
    original shows in its place, it is not the artist's sentence.)
    """
    from .session import current

    try:
        return substitute(text, lambda command: _call(command, node))
    except TclError as error:
        current().tcl_errors.append(str(error))
        return ""


def _call(command: list[str], node: Any) -> str:
    name, *arguments = command
    if name in ("value", "knob") and len(arguments) == 1 and node is not None:
        return _value(arguments[0], node)
    if name == "file" and len(arguments) == 2:
        kind, path = arguments
        parts = {"dirname": os.path.dirname, "tail": os.path.basename, "rootname": lambda p: os.path.splitext(p)[0],
                 "extension": lambda p: os.path.splitext(p)[1]}  # fmt: skip
        if kind in parts:
            return parts[kind](path)
    if name == "python" and arguments:
        from .session import current

        return str(eval(" ".join(arguments), current().main_namespace))
    if name == "frame" and not arguments:
        from .session import current

        return f"{current().root.frame:g}"
    if name == "date" and not arguments:
        return datetime.date.today().isoformat()
    raise TclError(f'invalid command name "{name}"')


def _value(path: str, node: Any) -> str:
    knob = resolve(path, node)
    if knob is None:
        raise TclError(f'no such knob "{path}"')
    return str(knob.value())


def resolve(path: str, node: Any) -> Any:
    """The knob that "knob", "this.knob", "parent.knob", "root.knob" or "Node.knob" means at this node, or None."""
    from .session import current

    *steps, name = path.split(".")
    place = node
    for step in steps:
        if step == "this":
            continue
        if step == "parent":
            place = place._parent
        elif step == "root":
            place = current().root
        else:
            inside = place.node(step) if hasattr(place, "node") and place is not node else None
            place = inside or (node._parent or current().root).node(step)
        if place is None:
            return None
    return place.knob(name)
