"""The ``ctgrounding`` command: a table of commands, each imported when it is called."""

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NoReturn

from ctgrounding import __version__
from ctgrounding.errors import CTGroundingError

TRAINER_COMMANDS = {
    "fit": "Train a model from a run config.",
    "validate": "Evaluate a checkpoint on the validation patients.",
    "test": "Evaluate a checkpoint on held-out patients and write numbers, pictures and a page.",
    "predict": "Write the embeddings of every scan.",
}

COMMANDS = {
    "phantom": ("ctgrounding.phantom:write_patients", "Write synthetic patients as hospital files."),
    "audit": ("ctgrounding.ingest.audit.command:audit", "Give a verdict on every scan of a card, with a page."),
    "ingest": ("ctgrounding.ingest:ingest", "Turn hospital files into audited shards, by a dataset card."),
    "inspect": ("ctgrounding.ingest:inspect", "Say what is in shards, and verify them."),
    "mine": ("ctgrounding.ingest:mine", "Read reports again and lay what they say over the shards."),
    "read": ("ctgrounding.reports.commands:read", "Read reports: references, snippets, organ sentences, labels."),
    "dictionary": (
        "ctgrounding.commands.dictionary:dictionary",
        "Count what training reports say is wrong with organs.",
    ),
    "locate": ("ctgrounding.commands.locate:locate", "Find the depth that a sentence speaks of, with a picture."),
    "search": ("ctgrounding.commands.search:search", "Rank scans of a run by a sentence."),
    "embed": ("ctgrounding.commands.embed:embed", "Keep what a frozen model makes of scans, to train on it quickly."),
    "evaluate": ("ctgrounding.commands.evaluate:evaluate", "Evaluate saved embeddings as a published protocol does."),
    "compare": ("ctgrounding.commands.compare:compare", "Say where one run is better than another, with intervals."),
    "report": ("ctgrounding.commands.report:report", "Write the result page of a run again."),
    "configs": ("ctgrounding.commands.configs:COMMANDS", "List the packaged run configs, or copy them to a folder."),
    "import-weights": (
        "ctgrounding.commands.import_weights:import_weights",
        "Map a published checkpoint onto our modules.",
    ),
    "export": (
        "ctgrounding.commands.export:export",
        "Write a trained model for transformers and others, with its card.",
    ),
    "doctor": ("ctgrounding.commands.doctor:doctor", "Check this installation and say what to mend."),
}

SYNONYMS = {"import-weights": {"--from": "--source"}}
"""Options whose name is a word of Python, which no argument of a function can have."""


def main(args: Sequence[str] | None = None) -> None:
    """Run one command; what the console script and ``python -m ctgrounding`` call.

    Args:
        args: Words after ``ctgrounding``; those of the process if None.

    Raises:
        SystemExit: With code 2 and one sentence on stderr when the user can mend it, with 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if args is None else args) or ["--help"]
    try:
        _run(words)
    except CTGroundingError as error:
        fail(str(error))
    except KeyboardInterrupt:
        sys.stderr.write("Stopped.\n")
        raise SystemExit(130) from None
    except BrokenPipeError:  # its reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        if error.filename is None or words[0] in TRAINER_COMMANDS:
            raise
        fail(f"{error.filename}: {error.strerror}. Check the path, its permissions and the free space.")


def lightning_main(args: Sequence[str] | None = None) -> None:
    """``lightning fit ...`` is ``ctgrounding fit ...``; other words go to lightning-sdk where it is installed."""
    words = list(sys.argv[1:] if args is None else args)
    if words and words[0] in TRAINER_COMMANDS:
        main(words)
        return
    try:
        entry = import_module("lightning_sdk.cli.entrypoint")
    except ImportError:
        fail(
            f"'lightning {' '.join(words[:1])}' is not one of {', '.join(TRAINER_COMMANDS)}, which this alias of "
            "ctgrounding runs, and lightning-sdk is not installed. Use 'ctgrounding --help'."
        )
    entry.main_cli()


def overview() -> str:
    """Text of ``ctgrounding --help``."""
    rows = [("Train and evaluate", TRAINER_COMMANDS), ("Data and use", {k: v[1] for k, v in COMMANDS.items()})]
    lines = ["ctgrounding: 3D CT vision-language models that can say where", ""]
    for title, commands in rows:
        lines += [f"{title}:", *(f"  {name:<16}{text}" for name, text in commands.items()), ""]
    return "\n".join([*lines, "Each has --help. 'ctgrounding configs list' shows run configs to start from.", ""])


def fail(message: str) -> NoReturn:
    """One sentence on stderr and exit code 2: the user's way out is in the message."""
    sys.stderr.write(f"error: {message}\n")
    raise SystemExit(2)


def _run(words: list[str]) -> None:
    if words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        sys.stdout.flush()
    elif words[0] == "--version":
        sys.stdout.write(f"ctgrounding {__version__}\n")
    else:
        _find(words[0])(words)


def _find(name: str) -> Callable[[list[str]], object]:
    if name in TRAINER_COMMANDS:
        return _run_trainer
    if name in COMMANDS:
        return _run_function
    from difflib import get_close_matches

    near = get_close_matches(name, [*TRAINER_COMMANDS, *COMMANDS], n=1)
    fail(f"There is no command '{name}'. " + (f"Did you mean '{near[0]}'? " if near else "") + "See --help.")


def _synonym(command: str, word: str) -> str:
    option, equals, value = word.partition("=")
    return SYNONYMS.get(command, {}).get(option, option) + equals + value


def _run_trainer(words: list[str]) -> object:
    return import_module("ctgrounding.trainer_cli").run(words)


def _run_function(words: list[str]) -> object:
    from jsonargparse import auto_cli

    from ctgrounding.parsing import BriefParser, with_bare_flags

    module, _, attribute = COMMANDS[words[0]][0].partition(":")
    function = getattr(import_module(module), attribute)
    words = [_synonym(words[0], word) for word in words]
    args = with_bare_flags(function, words[1:])
    return auto_cli(function, args=args, prog=f"ctgrounding {words[0]}", parser_class=BriefParser, fail_untyped=True)
