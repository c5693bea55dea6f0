# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Checks of a plate before it is published. The first reads every pixel; the others rest on what it found."""

from typing import Any

from pyblish import api

from rushes.publish import checks, progress, publication, repairs


class WriteRushesManifest(api.Action):
    """Writes the manifest that a plate lacks, of its files as they are now; it proves nothing of the time before."""

    label = "Write the missing manifest"
    on = "failed"

    def process(self, context: Any, plugin: Any) -> None:
        for instance in repairs.failed_instances(context, plugin):
            path = checks.write_manifest(publication.publication_of(instance).subject)
            self.log.info("%s is written", path)


class ValidateRushesFrames(api.InstancePlugin):
    """Every frame is there, reads to its last pixel, and is what was written, by the manifest's hashes."""

    label = "Frames whole and unchanged"
    order = api.ValidatorOrder - 0.2
    families = [publication.FAMILY]
    actions = [WriteRushesManifest]

    def process(self, instance: Any) -> None:
        found = publication.publication_of(instance)
        checks.frames(found, progress.teller(instance.context))
        self.log.info("%d files, %d bytes", len(found.content.files), found.content.bytes)


class ValidateRushesRange(api.InstancePlugin):
    """First frame and length are those of the shot and of the project."""

    label = "Range"
    order = api.ValidatorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        checks.frame_range(publication.publication_of(instance))


class ValidateRushesRate(api.InstancePlugin):
    """The frame rate in the files is the shot's and the project's."""

    label = "Frame rate"
    order = api.ValidatorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        checks.rate(publication.publication_of(instance))


class ValidateRushesSize(api.InstancePlugin):
    """Width and height are the project's."""

    label = "Size"
    order = api.ValidatorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        checks.size(publication.publication_of(instance))


class ValidateRushesColor(api.InstancePlugin):
    """Every file's colour tags say one and the same space, which is the project's."""

    label = "Colour tags"
    order = api.ValidatorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        checks.colour(publication.publication_of(instance))


class ValidateRushesProvenance(api.InstancePlugin):
    """Every file carries the record of the shot and the model that made it."""

    label = "Provenance"
    order = api.ValidatorOrder
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        checks.provenance(publication.publication_of(instance))


class ValidateRushesReview(api.InstancePlugin):
    """A person has looked at exactly these files, and approved them. No action can do that for them."""

    label = "Reviewed by a person"
    order = api.ValidatorOrder + 0.1
    families = [publication.FAMILY]

    def process(self, instance: Any) -> None:
        found = publication.publication_of(instance)
        checks.review(found)
        if found.review is not None:
            self.log.info("%s", found.review)
