"""The errors that a user can mend: each names the option or file, its value and the remedy."""

from __future__ import annotations


class UserError(Exception):
    """Something in the command, the configuration or the data that the user can change.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """
