"""The command line: names the commands and hands the words to `twofold.parsers`, which it loads when it must.

Nothing heavy is imported here: `twofold --help` answers at once.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Sequence

from twofold import __version__
from twofold.commands import COMMANDS, TASKS
from twofold.commands.help import brief_help, wants_help
from twofold.errors import RankLost, Stopped, UserError, suggest
from twofold.interrupts import Interrupted, end_with_launcher, interruptible
from twofold.text import printable


def usage() -> str:
    """What `twofold --help` prints: the commands, by what they are for."""
    width = max(len(name) for name in COMMANDS)
    lines = []
    for task in dict.fromkeys([*TASKS, *(command.task for command in COMMANDS.values())]):
        own = {name: command for name, command in COMMANDS.items() if command.task == task}
        lines += [f"{task}:", *(f"  {name:<{width}}  {command.summary}" for name, command in own.items()), ""]
    return "\n".join(
        ["usage: twofold COMMAND ...", "", "Representations from two views of each example.", "", *lines,
         "`twofold COMMAND --help` shows the options that people use, --help-all every one with its default;",
         "`twofold --version` tells the version."]
    )  # fmt: skip


def run() -> None:
    """Run the command of this process and end it.

    A process that a launcher started beside others ends without taking the interpreter apart. All that it had to write
    is written by then; but threads of PyTorch's process groups can still be at work, and now and then the process
    aborts in their midst, which the launcher takes for a failed run (4 of some 40 runs of two processes on two busy
    cores, torch 2.15).
    """
    status = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status.

    0; 1 where `twofold doctor` finds a fault; 2 for a user's error; 75 where --resume mends it; 128 + a signal.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"twofold {__version__}")
        return 0
    try:
        name, words = command_of(arguments)
        if wants_help(words, ("-h", "--help")) and (told := brief_help(name, COMMANDS[name].summary)) is not None:
            print(told)
            return 0
        # What Pillow remarks on a file's metadata or size is for programmers; what matters of it is told of the file.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        with interruptible():
            end_with_launcher()
            _tell_of_the_wait(name, words)
            from twofold import parsers  # PyTorch and all: seconds

            return parsers.run(name, words)
    except UserError as error:
        print(f"twofold: error: {printable(str(error))}", file=sys.stderr)
        return 2
    except RankLost as lost:
        print(f"twofold: error: {printable(str(lost))}", file=sys.stderr)
        return lost.status
    except RuntimeError as error:
        from twofold.distributed import speaks_of_partners

        if not speaks_of_partners(error):
            raise
        what = f"the connection to another process of the run broke, which says why: {str(error).splitlines()[0]}"
        print(f"twofold: error: {printable(str(RankLost(what)))}", file=sys.stderr)
        return RankLost.status
    except Stopped as stop:
        print(f"twofold: {printable(str(stop))}", file=sys.stderr)
        return 128 + stop.signal
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Interrupted) else signal.SIGINT
        print(
            f"twofold: stopped by {signal.Signals(number).name}; what was saved before is whole, and a command that "
            "takes --resume goes on with it",
            file=sys.stderr,
        )
        return 128 + number
    except BrokenPipeError:  # the reader of our output went away (`| head`): no news is for anybody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _tell_of_the_wait(name: str, words: Sequence[str]) -> None:
    """Say on stderr, on the first rank, that the command was understood, where PyTorch is still to be loaded."""
    if "torch" in sys.modules or os.environ.get("RANK", "0") != "0" or wants_help(words):
        return
    print(f"twofold {__version__}: {name}", file=sys.stderr, flush=True)


def command_of(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and the words after it; UserError if there is no such command."""
    for count in (2, 1):
        name = " ".join(arguments[:count])
        if name in COMMANDS:
            return name, list(arguments[count:])
    if arguments[0] == "study":
        studies = (name for name in COMMANDS if name.startswith("study "))
        lines = "".join(f"\n  twofold {name} PATH --out FOLDER: {COMMANDS[name].summary}" for name in studies)
        raise UserError(f"say which study:{lines}")
    raise UserError(f"there is no command '{arguments[0]}'{suggest(arguments[0], COMMANDS)}")
