"""What stops the local stack, said in one line."""

from __future__ import annotations


class LocalError(Exception):
    """The stack cannot go on; the message says what is wrong, which log file tells more, and how to mend it."""
