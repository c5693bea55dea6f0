# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Jobs: shots that are being made, in folders that outlive every process. Hosts vendor client.py,
wire.py, controller.py, plan.py and placeholder.py."""
