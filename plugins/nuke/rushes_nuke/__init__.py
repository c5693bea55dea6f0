# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Rushes in Nuke: the node, the session that talks to the worker, and the panel."""
