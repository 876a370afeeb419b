"""The `dstools` command: its subcommands, error messages and exit codes."""

import errno
from typing import IO, Any

import click

from dstools import __version__
from dstools.commands.bench import bench
from dstools.commands.compare import compare
from dstools.commands.dequantize import dequantize
from dstools.commands.distill import distill
from dstools.commands.env import env
from dstools.commands.eval import evaluate
from dstools.commands.export import export
from dstools.commands.generate import generate
from dstools.commands.inspect import inspect
from dstools.commands.push import push
from dstools.commands.quantize import quantize
from dstools.commands.report import report
from dstools.commands.verify import verify
from dstools.options import FELL_SHORT, SETTINGS, hint, one_line
from dstools_converters.errors import DstoolsError, ShortfallError

EXIT_CODES = """\b
Exit codes:
  0    done
  1    failed; stderr says why, and what to do about it
  2    misused: an unknown option, a missing argument, a value out of range
  3    done, but a check that you asked for failed
  130  stopped with Ctrl-C"""


WRITERS = (
    "quantize",
    "dequantize",
    "distill",
    "export",
    "push",
)  # what they wrote is kept, and used again
CHOICES = ("DSTOOLS_ISA", "DSTOOLS_KERNELS")  # environment variables that kernels read
OS_HINTS = {
    errno.EACCES: "check the permissions of the folder",
    errno.EROFS: "name a folder on a writable disk",
    errno.ENOTDIR: "name a folder, not a file",
    errno.EEXIST: "move or delete it",
    errno.ENOSPC: "free some space",
    errno.EMFILE: "raise the limit of open files: ulimit -n 1024",
}


class Failure(click.ClickException):
    """An error message: what went wrong, then what to do."""

    exit_code = 1

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint

    def show(self, file: IO[Any] | None = None) -> None:
        """Print to stderr."""
        click.echo(one_line(f"error: {self.message}"), err=True)
        if self.hint:
            hint(self.hint)


class Shortfall(Failure):
    """A check that the user asked for failed and stopped the command."""

    exit_code = FELL_SHORT


class App(click.Group):
    """The root group, which turns errors into messages."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the subcommand."""
        try:
            return super().invoke(ctx)
        except DstoolsError as error:
            if ctx.params["debug"]:
                raise
            kind = Shortfall if isinstance(error, ShortfallError) else Failure
            raise kind(str(error), error.hint) from error
        except OSError as error:
            if ctx.params["debug"] or error.errno == errno.EPIPE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            advice = OS_HINTS.get(error.errno or 0, "`dstools --debug COMMAND` shows where")
            raise Failure(f"{where}{error.strerror or error}", advice) from error
        except ValueError as error:
            name, is_known, _ = str(error).partition(" ")[0].partition("=")
            if ctx.params["debug"] or name not in CHOICES:
                raise
            advice = f"unset {name}, or name one of these"
            if is_known:  # but does not run here
                advice = f"set TRITON_INTERPRET=1, or unset {name}"
            raise Failure(str(error), advice) from error
        except KeyboardInterrupt as error:
            kept = str(error) or "nothing is lost, the same command resumes or starts again"
            writes = ctx.invoked_subcommand in WRITERS
            click.echo(f"\ninterrupted{f'; {kept}' if writes else ''}", err=True)
            ctx.exit(130)


@click.group(cls=App, context_settings=SETTINGS, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="dstools")
@click.option("--debug", is_flag=True, help="Log each step, and show the traceback of an error.")
def main(debug: bool) -> None:
    """Quantize, verify, distill and export DeepSeek MoE checkpoints."""
    if debug:
        import logging

        logging.basicConfig(format="%(name)s: %(message)s")
        for package in ("dstools", "dstools_distill", "dstools_converters", "dstools_kernels"):
            logging.getLogger(package).setLevel(logging.DEBUG)


COMMANDS = (
    *(inspect, quantize, dequantize, verify, compare, evaluate, report, generate, export),
    *(bench, distill, push, env),
)
for command in COMMANDS:
    main.add_command(command)
