# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Makes a version visible, whole and under a new name; or leaves nothing of it."""

from typing import Any

from pyblish import api

from rushes.publish import deliver, publication, repairs


class IntegrateRushesVersion(api.InstancePlugin):
    """Gives the finished folder its name. It refuses after any failure, which pyblish itself would not."""

    label = "Version"
    order = api.IntegratorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        repairs.refuse_after_failure(instance.context, self.order)
        self.log.info("%s", deliver.integrate(publication.publication_of(instance)))


class CleanUpRushes(api.ContextPlugin):
    """Removes what was made and not published."""

    label = "Clean up"
    order = api.IntegratorOrder + 0.4

    def process(self, context: Any) -> None:
        repairs.discard_unpublished(context)
