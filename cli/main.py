"""The ``garrison`` command: a lazy group, so that a command imports only what it needs, and the one place that prints errors.

Exit codes: 0 done (also: already so), 1 some node failed, 2 usage, 3 refused by a safety gate, 4 some node unreachable and
not queued, 6 queued only, 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import traceback
from typing import Final

import click

from garrison.cli.console import print_error
from garrison.common.errors import ConfigError, GarrisonError, InventoryError, PolicyError

__all__ = ["COMMANDS", "cli", "main"]

EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130

# name → (module, attribute, one line for the command list). The line stands here so that --help imports nothing.
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "apply": ("garrison.cli.apply", "Sign the states and assign them to nodes"),
    "confirm": ("garrison.cli.confirm", "Confirm the policy that is on trial on this node"),
    "enforcer": ("garrison.cli.enforcer", "Show or release what the kernel of this node enforces"),
    "events": ("garrison.cli.events", "Show what nodes saw"),
    "init": ("garrison.cli.init", "Make keys and the master's data directory"),
    "inventory": ("garrison.cli.inventory", "Show the inventory as garrison reads it"),
    "jobs": ("garrison.cli.jobs", "List and show remote command runs"),
    "master": ("garrison.cli.master", "Run the master"),
    "minion": ("garrison.cli.minion", "Run the minion, or show its key and state"),
    "nodes": ("garrison.cli.nodes", "List, accept and retire nodes"),
    "policy": ("garrison.cli.policy", "Lint and explain policies"),
    "relay": ("garrison.cli.relay", "Run the relay of a site, or show its key and state"),
    "run": ("garrison.cli.run", "Run a command on nodes"),
    "simulate": ("garrison.cli.simulate", "Simulate nodes, to see what a master bears"),
    "store": ("garrison.cli.store", "Look at, back up and prune the master's store"),
    "top": ("garrison.cli.top", "Show resources of the fleet, live"),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[cmd_name][0])
        command = getattr(module, "command")  # noqa: B009 - the attribute is a convention, not known to the type checker
        if not isinstance(command, click.Command):
            raise TypeError(f"{module.__name__}.command is not a command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in sorted(COMMANDS)])


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done, 1 some node failed, 2 usage, 3 refused by a safety gate, "
    "4 some node unreachable and not queued, 6 queued only, 130 interrupted.",
)
@click.version_option(package_name="garrison", prog_name="garrison")
def cli() -> None:
    """Post a guard on every node of a private or edge fleet, and keep command of it over bad links."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        argv: Arguments without the program's name; ``None`` for the process's own.
    """
    try:
        code = cli.main(args=argv, standalone_mode=False)
    except click.ClickException as err:
        err.show()
        sys.exit(err.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(EXIT_INTERRUPTED)
    except GarrisonError as err:
        print_error(err)
        sys.exit(EXIT_USAGE if isinstance(err, ConfigError | InventoryError | PolicyError) else EXIT_FAILED)
    except BrokenPipeError:
        # The reader went away (`garrison events | head`): not an error, and Python must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as err:  # noqa: BLE001 - a bug: one line for the person, the rest to a file
        with tempfile.NamedTemporaryFile("w", prefix="garrison-", suffix=".traceback", delete=False) as file:
            traceback.print_exc(file=file)
        print_error(GarrisonError(f"{type(err).__name__}: {err}", hint=f"this is a bug; the traceback is in {file.name}"))
        sys.exit(EXIT_FAILED)
    sys.exit(code if isinstance(code, int) else 0)
