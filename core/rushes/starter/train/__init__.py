# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Training of the starter model: `rushes train vae|world|model|evaluate`."""
