"""`python -m twofold`: the command `twofold`, also for launchers that start a module."""

import sys

from twofold.cli import main

sys.exit(main())
