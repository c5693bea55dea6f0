# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Writes a version into a hidden folder. The plate comes first: it reserves the version's number."""

from typing import Any

from pyblish import api

from rushes.publish import deliver, progress, publication


class ExtractRushesPlate(api.InstancePlugin):
    """The plate's files, copied byte by byte and compared with what was checked, with a manifest of their own."""

    label = "Plate"
    order = api.ExtractorOrder - 0.2
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        deliver.plate(publication.publication_of(instance), progress.teller(instance.context))


class ExtractRushesProxy(api.InstancePlugin):
    """A movie of all frames for editors and reviewers."""

    label = "Proxy movie"
    order = api.ExtractorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        deliver.proxy(publication.publication_of(instance), progress.teller(instance.context))


class ExtractRushesThumbnail(api.InstancePlugin):
    """The middle frame as a small PNG."""

    label = "Thumbnail"
    order = api.ExtractorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        deliver.thumbnail(publication.publication_of(instance))


class ExtractRushesContactSheet(api.InstancePlugin):
    """Frames on one page, with their numbers and what was asked for."""

    label = "Contact sheet"
    order = api.ExtractorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        deliver.sheet(publication.publication_of(instance))


class ExtractRushesTimeline(api.InstancePlugin):
    """An OpenTimelineIO clip that refers to the published plate and proxy."""

    label = "Timeline"
    order = api.ExtractorOrder + 0.2
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        deliver.timeline(publication.publication_of(instance))
