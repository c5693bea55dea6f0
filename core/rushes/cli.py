# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""The command `rushes`: finds the subcommand, and turns every failure into one line and an exit status.

0: every output is complete on disk. 2: bad input, nothing on disk. 130: Ctrl-C. 143: terminated.
1: anything else.
"""

from __future__ import annotations

import difflib
import importlib
import json
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from rushes._version import __version__
from rushes.commands.launched import find_place
from rushes.commands.stopping import Stopped
from rushes.shot import ShotError

# name -> (module:attribute, help line). A command's module is imported when that command runs, not before:
# `rushes inspect` must not pay for training, and the help page for neither.
_COMMANDS = {
    "generate": ("rushes.commands.generate:generate", "Make a clip from a sentence."),
    "decode": ("rushes.commands.decode:decode", "Turn latents.safetensors into a movie, plate or still."),
    "inspect": ("rushes.commands.inspect:inspect", "Print the shot that an output carries."),
    "verify": ("rushes.commands.verify:verify", "Prove that a plate or movie is complete and unchanged."),
    "jobs": ("rushes.commands.jobs:jobs", "List the jobs of hosts and their states; clean up."),
    "resume": ("rushes.commands.jobs:resume", "Go on with a job that was interrupted."),
    "review": ("rushes.commands.publish:review", "Say that a person has looked at a plate or a job's frames."),
    "publish": ("rushes.commands.publish:publish", "Check a reviewed plate and publish it as a new version."),
    "worker": ("rushes.commands.jobs:worker", "Make shots for a host that talks over a pipe."),
    "estimate": ("rushes.commands.estimate:estimate", "Say what a shot will take before it is made."),
    "package": ("rushes.commands.package:package", "Build the plug-in of a host."),
    "models": ("rushes.commands.models:models", "List the models and what they know."),
    "doctor": ("rushes.commands.doctor:doctor", "Say what this machine has and what is missing."),
    "train": ("rushes.starter.commands:train", "Render the world, train and evaluate the starter model."),
}


class LazyGroup(click.Group):
    """A click group whose subcommands are named in a table and imported at first use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            near = [known for known in _COMMANDS if known.startswith(name)]
            near = near or difflib.get_close_matches(name, _COMMANDS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise click.BadParameter(f"got {name!r}; {', '.join(_COMMANDS)} are allowed{hint}", param_hint="command")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            # before click sees it: click would print an empty line of its own
            raise Stopped(signal.SIGINT) from error


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rushes")
@click.option("--traceback", is_flag=True, expose_value=False, help="Show the whole traceback of an unexpected error.")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Text-to-video: from a sentence to a movie and an EXR plate."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Read by hand, so that it may stand anywhere: people add it to the end of the line that failed.
    wants_traceback = "--traceback" in arguments
    arguments = [argument for argument in arguments if argument != "--traceback"]
    for stream in (sys.stdout, sys.stderr):
        # a console or log that is not UTF-8 must not turn a finished shot into an error
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = cli.main(args=arguments, prog_name="rushes", standalone_mode=False, windows_expand_args=False)
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else "")
        return 0
    except Exception as error:
        status, message = _explain(error)
        if wants_traceback:
            traceback.print_exc()
        elif status == 1:
            message += " (add --traceback for the whole story)"
        return _fail(status, message, as_json="--json" in arguments)
    except KeyboardInterrupt:
        return _fail(128 + signal.SIGINT, str(Stopped(signal.SIGINT)), as_json="--json" in arguments)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit status and sentence for what went wrong."""
    if isinstance(error, ShotError):
        return 2, str(error)
    if isinstance(error, Stopped):
        return 128 + error.signal, str(error)
    if isinstance(error, click.Abort):
        return 128 + signal.SIGINT, str(Stopped(signal.SIGINT))
    if isinstance(error, click.ClickException):
        return 2, _explain_usage(error)
    return 1, f"{type(error).__name__}: {error}"


def _explain_usage(error: click.ClickException) -> str:
    """Click's usage errors in the house's form: argument, what was got, what is allowed."""
    help_hint = "rushes --help"
    if isinstance(error, click.UsageError) and error.ctx is not None:
        help_hint = f"{error.ctx.command_path} --help"
    if isinstance(error, click.NoSuchOption):
        near = f" (did you mean {error.possibilities[0]}?)" if error.possibilities else ""
        return f"{error.option_name}: there is no such option; `{help_hint}` lists those that are allowed{near}"
    if isinstance(error, click.BadOptionUsage):
        return f"{error.option_name}: got no value; one after it is needed"
    message = error.message.rstrip(".")
    if isinstance(error, click.MissingParameter):
        param = error.param
        name = param.opts[-1] if isinstance(param, click.Option) else param and param.human_readable_name
        return f"{name or 'argument'}: it is missing; `{help_hint}` shows what is allowed"
    if isinstance(error, click.BadParameter):
        param = error.param
        hint = error.param_hint or (param.opts[-1] if param is not None else "argument")
        return f"{hint if isinstance(hint, str) else ' '.join(hint)}: {message}"
    return f"command line: {message[:1].lower()}{message[1:]}; `{help_hint}` shows what is allowed"


def _fail(status: int, message: str, *, as_json: bool) -> int:
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    place = find_place()
    if place is not None and not place.leads:
        line = f"process {place.rank}: {line}"
    elif as_json:
        click.echo(json.dumps({"event": "failed", "exit": int(status), "message": line}))
    click.echo(f"rushes: {line}", err=True)
    return int(status)
