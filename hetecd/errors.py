"""The few ways hetecd says no.

    HetecdError
    ├── InputError (ValueError)     a file or argument is not what it must be
    │   └── AbsentError             what was asked for by its name is not there
    ├── UsageError (ValueError)     arguments of a command do not go together
    ├── ConfigError (ValueError)    a recipe or setting is wrong
    ├── CheckpointError (ValueError)  a weights file cannot be used
    ├── ExportError (ValueError)    a graph does not compute what the network does
    └── OutputError (OSError)       a result cannot be written

Every message is one line: which file or argument, what was found, what was expected, what to do.
The command line prints it and exits with 1, with 2 after a UsageError; the traceback only shows with ``--debug``.
"""

from collections.abc import Sequence


def some(names: Sequence[str], most: int = 5) -> str:
    """The first of many names, for a message of one line."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


class HetecdError(Exception):
    """Root of everything hetecd raises on purpose."""


class InputError(HetecdError, ValueError):
    """A raster, data folder, label or argument is not what it must be."""


class UsageError(HetecdError, ValueError):
    """Arguments of a command that do not go together; exit code 2."""


class AbsentError(InputError):
    """What was asked for by its name is not there."""


class ConfigError(HetecdError, ValueError):
    """A recipe or a setting is wrong."""


class CheckpointError(HetecdError, ValueError):
    """A weights file is unreadable, foreign or does not fit."""


class ExportError(HetecdError, ValueError):
    """An exported graph does not compute what the network does; it is not written."""


class OutputError(HetecdError, OSError):
    """A result cannot be written (folder not writable, disk full)."""
