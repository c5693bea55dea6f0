# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
from . import panels as panels
