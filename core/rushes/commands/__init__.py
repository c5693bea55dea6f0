# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""One module for each subcommand of `rushes`; the heavy rooms are imported inside the commands."""
