"""The `aivailable` command: names and groups of its subcommands, errors and exit codes.

Owns what a terminal user types and reads. Must not decide anything about the cluster: it asks a
node through `client`, and `up` hands a `Config` to `peer.app`. Everything heavy is imported inside
the command that needs it, so that `--help` stays fast (a test watches this). The `aivailable`
script and `python -m aivailable` begin here.

More than fifteen files, because each command or group of commands has its own: whoever looks for
a command finds the file by its name. The last five are shared by them.

* `up`: `up`.
* `demo`: `demo`.
* `local_cluster`: the demo's peers.
* `doctor`: `doctor`.
* `runtime`: `runtime`.
* `cluster`: `status`, `top`, `members`, `admit`, `lock`, `leave`, `remove`, `events`.
* `nodes`: `drain`, `undrain`, `pause`.
* `models`: `deploy`, `undeploy`, `fit`, `models`.
* `placing`: options of `deploy` and `fit`.
* `chat`: `chat`.
* `keys`: `key`.
* `settings`: `set`.
* `invite`: `invite`.
* `merge`: `merge`.
* `recover`: `recover`.
* `target`: which node a command talks to.
* `port_owner`: whose program has a port.
* `render`: tables, lines, complaints.
* `render_plan`: plans and fits.
* `progress`: bars while a model comes up.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from aivailable import __version__
from aivailable.advice import DEPLOY, UP
from aivailable.cli import (
    chat,
    cluster,
    demo,
    doctor,
    invite,
    keys,
    merge,
    models,
    nodes,
    recover,
    render,
    runtime,
    settings,
    up,
)
from aivailable.errors import AivailableError, ConfigError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

NODE_PANEL = "This machine"
CLUSTER_PANEL = "The cluster"
MODEL_PANEL = "Models"


class _Commands(TyperGroup):
    """Turns the package's errors into one sentence on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                render.complain(problem)
            raise typer.Exit(EXIT_USAGE) from None
        except AivailableError as error:
            render.complain(str(error))
            raise typer.Exit(EXIT_FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(EXIT_INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    name="aivailable",
    help="The GPU machines of a LAN as one highly available LLM service.",
    epilog=f"Start with {UP} on each machine, then {DEPLOY}.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aivailable {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Options of the command itself."""


app.command(rich_help_panel=NODE_PANEL)(up.up)
app.command(rich_help_panel=NODE_PANEL)(demo.demo)
app.command(rich_help_panel=NODE_PANEL)(doctor.doctor)
app.command(rich_help_panel=NODE_PANEL)(cluster.leave)
app.command(rich_help_panel=MODEL_PANEL)(models.deploy)
app.command(rich_help_panel=MODEL_PANEL)(models.fit)
app.command(rich_help_panel=MODEL_PANEL)(models.undeploy)
app.command(name="models", rich_help_panel=MODEL_PANEL)(models.list_models)
app.command(name="chat", rich_help_panel=MODEL_PANEL)(chat.chat)
app.command(rich_help_panel=CLUSTER_PANEL)(cluster.status)
app.command(rich_help_panel=CLUSTER_PANEL)(cluster.top)
app.command(rich_help_panel=CLUSTER_PANEL)(cluster.members)
app.command(rich_help_panel=CLUSTER_PANEL)(cluster.admit)
app.command(rich_help_panel=CLUSTER_PANEL)(cluster.lock)
app.command(rich_help_panel=CLUSTER_PANEL)(invite.invite)
app.command(rich_help_panel=CLUSTER_PANEL)(nodes.drain)
app.command(rich_help_panel=CLUSTER_PANEL)(nodes.undrain)
app.command(rich_help_panel=NODE_PANEL)(nodes.pause)
app.command(name="set", rich_help_panel=CLUSTER_PANEL)(settings.set_)
app.command(rich_help_panel=CLUSTER_PANEL)(cluster.remove)
app.command(rich_help_panel=CLUSTER_PANEL)(merge.merge)
app.command(rich_help_panel=CLUSTER_PANEL)(recover.recover)
app.command(rich_help_panel=CLUSTER_PANEL)(cluster.events)
app.add_typer(runtime.app, name="runtime", rich_help_panel=NODE_PANEL)
app.add_typer(keys.app, name="key", rich_help_panel=CLUSTER_PANEL)


def main() -> None:
    """Entry point of the `aivailable` script."""
    app()
