"""Errors whose text is all that their reader needs."""


class Explained(Exception):
    """A fault that is not ours: a command that it ends shows its text, in one line, and no traceback."""


class UsageError(Explained, ValueError):
    """What a command does not take: arguments, settings, or files that they name."""
