# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""`python -m rushes` is the command `rushes`."""

import sys

from rushes.cli import main

if __name__ == "__main__":
    sys.exit(main())
