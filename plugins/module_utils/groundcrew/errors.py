"""The one exception that people are meant to read."""

from __future__ import annotations


class GroundcrewError(Exception):
    """Something a person has to mend.

    The message says what is wrong, the value that was found, and the edit or command that mends it.
    Programs print it without a traceback and exit with a status other than zero.
    """
