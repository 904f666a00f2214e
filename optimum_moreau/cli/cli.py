"""Finds the verb, runs it, and turns a user's mistake into one line on standard error and exit code 2.

Where nobody reads standard output any more (`| head -1`), the command ends quietly, with the code of a SIGPIPE.
"""

import argparse
import contextlib
import errno
import io
import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import MoreauError, first_line
from ..files.temporary import is_full
from ..pipeline import processes
from ..registry import suggestion
from .options import shorten

# verb → one line for the list of verbs; each is a module of this folder with add_arguments, run, show and EXAMPLE.
VERBS = {
    "prune": "score, cut, save and verify a model",
    "plan": "score a model and write the plan; the model is not changed",
    "plan-diff": "how much two plans agree",
    "recover": "tune a pruned model with LoRA, merge, save and verify",
    "apply": "apply a plan to its base model, save and verify",
    "push": "publish a saved folder on the Hub",
    "evaluate": "perplexity of a model on texts, and zero-shot accuracy on tasks",
    "robustness": "how much plans agree under small changes of model and calibration",
    "benchmark": "speed, memory and load time of a model beside its base",
    "insight": "the paper's figures for a model: channel ranks, perplexity over layers, ratios and settings",
    "report": "one HTML page about a pruned model, or several",
    "criteria": "list the criteria; of one, its settings",
    "budgets": "list the budgets; of one, its settings",
    "compensations": "list the compensations; of one, its settings",
    "families": "list the model families",
}

_READER_GONE = 128 + signal.SIGPIPE
_OF_A_PROGRAM = (errno.EBADF, errno.EFAULT, errno.EINVAL, errno.ENOTTY, errno.ECHILD)  # where no file is named
_OF_A_NETWORK = (errno.ENOTCONN, errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EHOSTUNREACH)


def prepare(verb: str, parser: argparse.ArgumentParser) -> None:
    """Gives a verb's parser its arguments, its example, and one-line errors."""
    module = _module(verb)
    parser.description = module.__doc__
    parser.epilog = f"example:\n  {parser.prog} {module.EXAMPLE}"
    module.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else to standard output")
    shorten(parser)
    _one_line_errors(parser)


def execute(verb: str, args: argparse.Namespace) -> int:
    """Runs a verb; returns the exit code: 0, 2 after a user's mistake, 130 after Ctrl-C, 141 where nobody reads on."""
    _open_closed_streams()
    module, program = _module(verb), f"optimum-moreau {verb}"
    level = logging.WARNING if processes.is_first() else logging.ERROR  # what all processes say is said once
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s", stream=sys.stderr, force=True)
    processes.announce("models.progress")  # a line a minute, where there is no terminal
    logging.getLogger("optimum_moreau.surgery.apply").setLevel(logging.ERROR)  # a note of what is printed says it
    with contextlib.suppress(ValueError):  # outside the main thread
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's stop cleans up as Ctrl-C does
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if not sys.stderr.isatty():
                _no_progress_bars()
            result = module.run(args)
    except Exception as error:
        if not (problem := _words(error)):
            raise
        _complain(f"{program}: error: {problem}")
        return 2
    except KeyboardInterrupt:
        kept = getattr(args, "checkpoint_dir", None)
        there = kept is not None and Path(kept).expanduser().is_dir() and any(Path(kept).expanduser().iterdir())
        saved = f"what is done is in {kept}, and the same command goes on from there" if there else "nothing was saved"
        if verb == "recover" or getattr(args, "recover_data", None) or getattr(args, "config", None):
            saved = "the same command goes on from what is done"
        if processes.is_first():
            _complain(f"{program}: interrupted; {saved}")
        return 130
    finally:
        processes.leave()
    if processes.is_first():
        return _say(json.dumps(result) if args.json else module.show(result), program)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """`optimum-moreau VERB …`: entry point of the console script."""
    _open_closed_streams()
    try:
        args = _parsed(argv)
    except SystemExit as stop:  # --help and --version, and mistakes
        raise SystemExit(_say("", "optimum-moreau") or stop.code) from None
    return execute(args.verb, args)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "optimum-moreau", description="Structured pruning of LLaMA-family language models."
    )
    _one_line_errors(parser)
    parser.add_argument("--version", action="version", version=f"optimum-moreau {__version__}")
    subparsers = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb, summary in VERBS.items():
        prepare(verb, subparsers.add_parser(verb, help=summary, allow_abbrev=False))
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        chosen = subparsers.choices[args.verb]
        flag = unknown[0].split("=")[0]
        chosen.error(f"unknown argument '{flag}'.{suggestion(flag, chosen._option_string_actions)}")
    return args


def _say(text: str, program: str) -> int:
    """Prints and flushes, so that what goes wrong does so here; returns the exit code."""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # its encoding may have no arrow
        print(text, end="\n" if text else "", flush=True)
        return 0
    except BrokenPipeError:
        code = _READER_GONE
    except OSError as problem:
        _complain(f"{program}: error: standard output cannot be written ({problem.strerror})")
        code = 2
    with contextlib.suppress(OSError):  # what is left in its buffer goes nowhere, without another error at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _words(error: Exception) -> str:
    """What went wrong: a user's mistake, or files, the system or the network; empty for a mistake of this program.

    An error of the system that names no file comes from a library's own file, or from a connection; one without a
    number is a library's words to its user.
    """
    if isinstance(error, MoreauError):
        return " ".join(str(error).split())
    words = " ".join(str(getattr(error, "strerror", None) or first_line(error)).split()) or type(error).__name__
    if isinstance(error, getattr(sys.modules.get("httpx2"), "TransportError", ())):
        return f"the Hub cannot be reached ({words}); try again"
    if not isinstance(error, OSError) or (error.filename is None and error.errno in _OF_A_PROGRAM):
        return ""
    if is_full(error):
        where = error.filename or tempfile.gettempdir()
        return f"{where}: cannot be written ({error.strerror}); make room, or set TMPDIR to a folder elsewhere"
    if isinstance(error, (ConnectionError, TimeoutError)) or error.errno in _OF_A_NETWORK:
        return f"the connection failed ({words}); try again"
    if error.filename is not None:
        return f"{error.filename}: cannot be read or written ({words})"
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"no more files can be opened ({words}); raise the limit (ulimit -n)"
    return words if error.errno is None else f"the system refuses ({words})"


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it
        print(text, file=sys.stderr, flush=True)


def _open_closed_streams() -> None:
    """Where the shell closed one (`>&-`), what is written goes nowhere, and no file takes its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (until the process ends)


def _module(verb: str) -> Any:
    return import_module(f".{verb.replace('-', '_')}", __package__)


def _one_line_errors(parser: argparse.ArgumentParser) -> None:
    def error(message: str) -> NoReturn:
        parser.exit(2, f"{parser.prog}: error: {message} (see --help)\n")

    parser.error = error  # type: ignore[method-assign]


def _no_progress_bars() -> None:
    """Of libraries that are imported already, and of those that will be."""
    os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    for name in ("datasets", "huggingface_hub.utils"):
        if name in sys.modules:
            sys.modules[name].disable_progress_bars()
    if "transformers.utils.logging" in sys.modules:
        sys.modules["transformers.utils.logging"].disable_progress_bar()
