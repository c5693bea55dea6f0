# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Nuke runs this in every mode, on render machines too. Nothing is started here: the folder is on sys.path by now."""

import sys

import nuke

if sys.version_info < (3, 9):
    nuke.tprint("Rushes: this Nuke has Python %d.%d; 3.9 or later is needed (Nuke 14)" % sys.version_info[:2])
