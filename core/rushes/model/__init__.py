# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The model: Wan's architecture in our own code. Import the modules you need; this package imports none of them."""
