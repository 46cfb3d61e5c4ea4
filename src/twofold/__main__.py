"""`python -m twofold`: the command `twofold`, also for launchers that start a module."""

from twofold.cli import run

run()
