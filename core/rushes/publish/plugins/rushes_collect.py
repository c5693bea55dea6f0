# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Collects plates of Rushes, by pattern or by job.

What is to be published: instances of the family `rushes.plate` that a host's own collector has made, with the pattern
or job in `data["source"]`; and what the context's `data["rushesSources"]` lists, else the environment variable
RUSHES_PUBLISH_SOURCES, separated as PATH is. Where to: the context's `data["rushesRoot"]`, or RUSHES_PUBLISH_ROOT.
"""

from typing import Any

from pyblish import api

from rushes.publish import collecting, publication


class CollectRushesPlates(api.ContextPlugin):
    """One instance for each plate, with its shot, name, job and the project's settings."""

    label = "Plates of Rushes"
    order = api.CollectorOrder

    def process(self, context: Any) -> None:
        for instance in list(context):
            if publication.FAMILY in collecting.families(instance):
                collecting.complete(instance)
        for source in collecting.sources(context):
            instance = context.create_instance(source, family=publication.FAMILY, source=source)
            try:
                collecting.complete(instance)
            except ValueError:
                context.remove(instance)
                raise
            self.log.info("%s", collecting.describe(instance))
