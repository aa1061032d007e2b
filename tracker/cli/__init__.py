"""The command line: `tracker COMMAND`. Answers on stdout, everything else on stderr.

Exit codes: 0 good, 1 failed, 2 usage. Each file beside this one holds related commands; here they
are put together, and here an error becomes one plain sentence.
"""

from __future__ import annotations

import sys
import traceback

import typer

from tracker.cli import imports, queries, roles, upkeep
from tracker.cli.terminal import remark
from tracker.errors import TrackerError

app = typer.Typer(
    name="tracker",
    help="Conversion tracking: live metrics, counted once, from a log you own.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for part in (roles.app, imports.app, queries.app, upkeep.app):
    app.add_typer(part)

EXIT_INTERRUPTED = 130
"""128 + SIGINT, as shells say it."""


def main() -> None:
    """Run the command line; the entry point of the package."""
    try:
        app()
    except TrackerError as error:
        remark(error.message, style="red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our answer has seen enough; a flush at exit would complain again.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last handler before the user
        place = traceback.extract_tb(error.__traceback__)[-1]
        remark(
            f"This is a mistake in tracker ({type(error).__name__}: {error}; {place.filename}, "
            f"line {place.lineno}): please report it with this line.",
            style="red",
        )
        sys.exit(1)
