# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes in Blender: clips from a sentence, on the timeline. Nothing is loaded before register()."""


def _modules():  # type: ignore[no-untyped-def] # modules have no common type that says register()
    from . import operators, panels, preferences, properties, queue_operators, scene_operators, timer

    return preferences, properties, operators, queue_operators, scene_operators, panels, timer


def register() -> None:
    for module in _modules():
        module.register()


def unregister() -> None:
    for module in reversed(_modules()):
        module.unregister()
