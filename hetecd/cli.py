"""The command line: what was typed to one verb, and what goes wrong to one line and an exit code.

Heavy imports happen inside the verb that needs them, so that ``hetecd --help`` answers at once.
"""

import errno
import logging
import sys
from collections.abc import Callable, Sequence

from jsonargparse import ArgumentError, ArgumentParser, Namespace

import hetecd
from hetecd import network_verbs as networks
from hetecd import scene_verbs as scenes
from hetecd.config import checked, read_recipe
from hetecd.errors import HetecdError, UsageError
from hetecd.usage import explained, spelled

VERBS: dict[str, tuple[Callable[[Namespace], int | None], Callable[[ArgumentParser], None]]] = {
    "train": (networks.train, networks.train_arguments),
    "evaluate": (networks.evaluate, networks.evaluate_arguments),
    "inspect": (scenes.inspect, scenes.inspect_arguments),
    "predict": (scenes.predict, scenes.predict_arguments),
    "report": (networks.report, networks.report_arguments),
    "compare": (networks.compare, networks.compare_arguments),
    "align": (scenes.align, scenes.align_arguments),
    "serve": (scenes.serve, scenes.serve_arguments),
    "distances": (networks.distances, networks.distances_arguments),
    "calibrate": (networks.calibrate, networks.calibrate_arguments),
    "average": (networks.average, networks.average_arguments),
    "convert": (networks.convert, networks.convert_arguments),
    "export": (networks.export, networks.export_arguments),
    "synth": (networks.synth, networks.synth_arguments),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the return value is the exit code: 0, 1 = it said why, 2 = usage, 130 = interrupted."""
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("hetecd").setLevel(logging.INFO)
    parsers = _parsers()
    words = spelled(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    if debug:  # before or after the verb
        words = ["--debug", *(word for word in words if word != "--debug")]
    try:
        return _run(parsers, words)
    except ArgumentError as error:
        verb = next((word for word in words if not word.startswith("-")), "")
        verb = verb if verb in VERBS else ""
        flags = [flag for action in parsers[verb]._actions for flag in action.option_strings]
        see = f"see `hetecd {f'{verb} ' if verb else ''}--help`"
        return _fail(f"{explained(str(error), flags)}; {see}", False, 2)
    except HetecdError as error:
        return _fail(str(error), debug, 2 if isinstance(error, UsageError) else 1)
    except KeyboardInterrupt:
        print("hetecd: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hetecd ... | head`
        sys.stdout = None
        return 1
    except OSError as error:  # such as a disk that fills up inside a library
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        return _fail(f"{where}{error.strerror or error}{hint}", debug)


def _run(parsers: dict[str, ArgumentParser], words: Sequence[str]) -> int:
    args = parsers[""].parse_args(words)
    if args.verb is None:
        parsers[""].print_help()
        return 2
    if args.verb == "train":
        recipe = args.train.recipe
        parsers["train"].set_defaults(checked(read_recipe(recipe), recipe))
        args = parsers[""].parse_args(words)
    return VERBS[args.verb][0](args[args.verb]) or 0


def _fail(message: str, debug: bool, code: int = 1) -> int:
    if debug:
        raise  # noqa: PLE0704 - the exception being handled
    print(f"hetecd: error: {' '.join(message.split())}", file=sys.stderr)
    return code


def _parsers() -> dict[str, ArgumentParser]:
    """The parser under "", and one per verb."""
    top = ArgumentParser(
        prog="hetecd",
        exit_on_error=False,
        allow_abbrev=False,
        description=hetecd.__doc__.split("\n")[0],
        version=hetecd.__version__,
    )
    top.add_argument("--debug", action="store_true", help="show the traceback of an error")
    verbs = top.add_subcommands(required=False, dest="verb")
    parsers = {"": top}
    for name, (run, add_arguments) in VERBS.items():
        parsers[name] = ArgumentParser(description=run.__doc__, exit_on_error=False, allow_abbrev=False)
        add_arguments(parsers[name])
        verbs.add_subcommand(name, parsers[name], help=(run.__doc__ or "").rstrip("."))
    return parsers
