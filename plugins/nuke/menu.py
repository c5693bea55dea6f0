# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Nuke runs this when its window is up."""

import sys

import nuke

if sys.version_info >= (3, 9):
    import rushes_nuke.panel  # noqa: F401 - a registered panel is looked up from __main__, which is here
    from rushes_nuke import startup

    startup.register()
else:
    nuke.tprint("Rushes: there is no menu, since it needs Python 3.9 or later")
