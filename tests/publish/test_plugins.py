# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""Our plug-ins among others: found by pyblish itself, beside a studio's, in hosts; and what pyblish would get wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyblish.util
import pytest
from pyblish import api

from rushes.publish import collecting, plugin_folder, register, run, runner
from rushes.publish.progress import Step
from rushes.shot import ShotError

Studio = Callable[[str], Path]
Visible = Callable[[Path], list[str]]

NAMES = [
    "CollectRushesPlates", "ValidateRushesFrames", "ValidateRushesColor", "ValidateRushesProvenance",
    "ValidateRushesRange", "ValidateRushesRate", "ValidateRushesSize", "ValidateRushesReview", "ExtractRushesPlate",
    "ExtractRushesContactSheet", "ExtractRushesProxy", "ExtractRushesThumbnail", "ExtractRushesTimeline",
    "IntegrateRushesVersion", "CleanUpRushes",
]  # fmt: skip

BARE = """
import json, sys
import pyblish.api, pyblish.util
found = pyblish.api.discover()
context = pyblish.util.publish()
errors = [str(result["error"]) for result in context.data["results"] if result["error"]]
ran = [result["plugin"].__name__ for result in context.data["results"]]
told = {"found": [plugin.__name__ for plugin in found], "errors": errors, "ran": ran}
open(sys.argv[1], "w").write(json.dumps(told))
"""


def _bare(tmp_path: Path, environment: dict[str, str], **variables: object) -> dict[str, list[str]]:
    """pyblish alone, in a process that has never heard of `rushes.publish.run`."""
    told = tmp_path / "told.json"
    done = subprocess.run(
        [sys.executable, "-c", BARE, str(told)], capture_output=True, text=True, timeout=240,
        env={**environment, **{name: str(value) for name, value in variables.items()}},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(told.read_text())


def test_pyblish_finds_and_runs_them_by_its_environment_variable(
    approved: str, tmp_path: Path, environment: dict[str, str], visible: Visible
) -> None:
    """No name is lost, as one of a file that cannot be read would be without a word."""
    root = tmp_path / "show"
    told = _bare(
        tmp_path, environment, PYBLISHPLUGINPATH=plugin_folder(),
        RUSHES_PUBLISH_SOURCES=approved, RUSHES_PUBLISH_ROOT=root,
    )  # fmt: skip
    assert sorted(name for name in told["found"] if "Rushes" in name) == sorted(NAMES)
    assert not told["errors"] and "publish.json" in {Path(name).name for name in visible(root)}


def test_pyblish_alone_integrates_nothing_after_a_failed_extractor(
    approved: str, tmp_path: Path, environment: dict[str, str], studio: Studio
) -> None:
    """It runs the integrator all the same, which then refuses; nothing is left."""
    failing = studio(
        "class ExtractStudio(api.InstancePlugin):\n    order = api.ExtractorOrder + 0.1\n"
        "    def process(self, instance):\n        raise RuntimeError('no licence')\n"
    )
    root = tmp_path / "show"
    told = _bare(
        tmp_path, environment, PYBLISHPLUGINPATH=f"{plugin_folder()}:{failing.parent}",
        RUSHES_PUBLISH_SOURCES=approved, RUSHES_PUBLISH_ROOT=root,
    )  # fmt: skip
    assert "IntegrateRushesVersion" in told["ran"]
    assert told["errors"] == [
        "no licence", "version: ExtractStudio has failed; nothing is published after a failure",
    ]  # fmt: skip
    assert [path.name for path in root.rglob("*")] == [".rushes-publish.lock"]


def test_register_makes_them_known_once() -> None:
    register("nuke")
    register("nuke")
    assert api.registered_paths().count(str(plugin_folder())) == 1 and "nuke" in api.registered_hosts()
    assert {plugin.__name__ for plugin in api.discover()} >= set(NAMES)
    assert [plugin.__name__ for plugin in runner.discovered() if "Rushes" in plugin.__name__] == NAMES


@pytest.mark.parametrize(
    ("order", "ran", "not_ran"),
    [
        ("api.CollectorOrder - 0.1", [], ["CollectRushesPlates", "ValidateRushesFrames"]),
        ("api.ValidatorOrder - 0.3", ["ValidateRushesReview"], ["ExtractRushesPlate"]),
        ("api.ExtractorOrder - 0.1", ["ExtractRushesPlate"], ["ExtractRushesProxy", "IntegrateRushesVersion"]),
        ("api.IntegratorOrder - 0.1", ["ExtractRushesTimeline"], ["IntegrateRushesVersion"]),
    ],
)
def test_a_failure_of_any_stage_stops_the_publish(
    approved: str, tmp_path: Path, studio: Studio, order: str, ran: list[str], not_ran: list[str], visible: Visible
) -> None:
    studio(
        f"class StudioFails(api.ContextPlugin):\n    order = {order}\n    label = 'Tracker'\n"
        "    def process(self, context):\n        raise RuntimeError('the server\\nis away')\n"
    )
    report = run([approved], tmp_path / "show")
    rows = {row.plugin: row for row in report.rows}
    assert not report.ok and rows["StudioFails"].message == "Tracker: RuntimeError: the server is away"
    assert "is away" in rows["StudioFails"].trace and report.sentence == rows["StudioFails"].message
    assert all(rows[name].outcome == "ok" for name in ran)
    assert all(name not in rows or rows[name].outcome == "skipped" for name in not_ran)
    assert not visible(tmp_path)[0].startswith("show") and not list((tmp_path / "show").rglob("*v001*"))


def test_a_studios_plugins_run_where_they_belong(approved: str, tmp_path: Path, studio: Studio) -> None:
    """In the order of their numbers, not of their files; and in their hosts alone."""
    studio(
        "class StudioLast(api.InstancePlugin):\n    order = api.IntegratorOrder + 0.1\n"
        "    families = ['rushes.plate']\n"
        "    def process(self, instance):\n        print('on stdout')\n"
        "        assert instance.data['rushes'].published.is_dir()\n"
        "class StudioFirst(api.ContextPlugin):\n    order = api.CollectorOrder - 0.4\n"
        "    def process(self, context):\n        assert not len(context)\n"
        "class OnlyMaya(api.ContextPlugin):\n    hosts = ['maya']\n    def process(self, context):\n        1 / 0\n"
        "class OnlyNuke(api.ContextPlugin):\n    hosts = ['nuke']\n    order = 1.2\n"
        "    def process(self, context):\n        self.log.info('in Nuke')\n"
        "class OtherFamily(api.InstancePlugin):\n    families = ['model']\n    order = 1.2\n"
        "    def process(self, instance):\n        1 / 0\n"
    )

    class Gone(api.ContextPlugin):
        hosts = ["maya"]  # noqa: RUF012 - pyblish's own form

        def process(self, context: object) -> None:
            raise RuntimeError("in no Maya")

    api.register_host("maya")
    api.register_plugin(Gone)  # which looks at the hosts of this moment, and never again
    api.deregister_host("maya")
    report = run([approved], tmp_path / "show", host="nuke")
    api.deregister_plugin(Gone)
    rows = [row for row in report.rows if not row.plugin.startswith("CollectCurrent")]
    assert report.ok and [row.plugin for row in rows if "Rushes" not in row.plugin] == [
        "StudioFirst", "OnlyNuke", "StudioLast",
    ]  # fmt: skip
    assert rows[0].plugin == "StudioFirst" and "in Nuke" in report.to_text()


def test_standard_output_stays_clean(
    approved: str, tmp_path: Path, studio: Studio, capfd: pytest.CaptureFixture[str]
) -> None:
    studio(
        "class StudioPrints(api.ContextPlugin):\n    order = 1.2\n"
        "    def process(self, context):\n        print('hello'); raise RuntimeError('broken')\n"
    )
    steps: list[str] = []

    def tell(step: Step) -> None:
        steps.append(step.phase)
        print("told")

    report = run([approved], tmp_path / "show", on_progress=tell)
    out, err = capfd.readouterr()
    assert not report.ok and set(out.split()) == {"told"} and "hello" in err and "Traceback" not in err
    assert "Frames whole and unchanged" in steps


def test_an_instance_that_is_switched_off_is_left_alone(approved: str, tmp_path: Path, studio: Studio) -> None:
    studio(
        "class SwitchOff(api.ContextPlugin):\n    order = api.CollectorOrder + 0.1\n"
        "    def process(self, context):\n        context[0].data['publish'] = False\n"
    )
    report = run([approved], tmp_path / "show")
    assert not report.ok and not report.failures and report.sentence == "publish: there was nothing to publish"
    assert "ValidateRushesFrames" not in {row.plugin for row in report.rows} and not (tmp_path / "show").exists()


def test_a_hosts_own_instances_are_completed(approved: str, tmp_path: Path) -> None:
    """As a collector of Nuke or Blender would make them."""
    register()
    context = api.Context()
    context.data[collecting.ROOT] = str(tmp_path / "show")
    context.create_instance("Read1", family="rushes.plate", source=approved)
    context.create_instance("Camera", family="camera")
    pyblish.util.publish(context)
    assert not [result["error"] for result in context.data["results"] if result["error"]]
    assert (tmp_path / "show/sh010/plates/sh010_ball/v001/publish.json").is_file()


def test_a_second_try_in_the_same_context_starts_afresh(approved: str, tmp_path: Path, studio: Studio) -> None:
    """As in a GUI: what was fixed is published, under the number that the failure has given back."""
    mood = tmp_path / "mood"
    studio(
        f"import pathlib\nclass ExtractMoody(api.InstancePlugin):\n    order = api.ExtractorOrder + 0.1\n"
        f"    def process(self, instance):\n        assert pathlib.Path({str(mood)!r}).exists(), 'not today'\n"
    )
    register()
    context = api.Context()
    context.data.update({collecting.ROOT: str(tmp_path / "show"), collecting.SOURCES: [approved]})
    pyblish.util.collect(context)
    for attempt in range(3):
        for plugin in [plugin for plugin in api.discover() if plugin.order > 0.5]:
            pyblish.util.publish(context, plugins=[plugin])
        if attempt == 0:
            assert not list((tmp_path / "show").rglob("v00*"))
            mood.touch()
    assert sorted(path.name for path in (tmp_path / "show").rglob("v00*")) == ["v001", "v002"]
    assert not [path for path in (tmp_path / "show").rglob(".*") if path.name != ".rushes-publish.lock"]


@pytest.mark.parametrize("source", [None, 5, "", ["a"]])
def test_an_instance_without_a_plate_says_so(tmp_path: Path, source: object) -> None:
    register()
    context = api.Context()
    context.data[collecting.ROOT] = str(tmp_path / "show")
    context.create_instance("Read1", family="rushes.plate", source=source)
    pyblish.util.publish(context)
    errors = [str(result["error"]) for result in context.data["results"] if result["error"]]
    assert errors[0] == f"source: got {source!r} in the instance Read1; a job or a pattern is allowed"
    assert not (tmp_path / "show").exists()


def test_a_plugin_file_that_cannot_be_read_is_not_lost_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plate: str
) -> None:
    """pyblish skips it with a line in a log, and would publish without the check that was in it."""
    broken = tmp_path / "installed"
    broken.mkdir()
    for path in plugin_folder().glob("*.py"):
        text = path.read_text()
        (broken / path.name).write_text(text + "\n1 / 0\n" if "validate" in path.name else text)
    monkeypatch.setattr(runner, "plugin_folder", lambda: broken)
    api.deregister_all_paths()
    with pytest.raises(ShotError, match=r"pyblish has not found ValidateRushesColor, .*; install Rushes again"):
        run([plate], tmp_path / "show")


def test_without_pyblish_one_sentence_says_what_to_install(
    plate: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    program = (
        "import sys; sys.modules['pyblish'] = None\n"
        "from rushes.cli import main\nsys.exit(main(['publish', sys.argv[1], '--to', sys.argv[2]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, plate, str(tmp_path / "show")],
        capture_output=True, text=True, timeout=240, env=environment,
    )  # fmt: skip
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == (
        'rushes: publish: pyblish-base is not installed; `pip install "rushes[publish]"` brings it\n'
    )
