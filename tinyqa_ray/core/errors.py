"""The error for a user's mistake: one line that says what is wrong, what was given, and what to do."""


class InputError(ValueError):
    """A file, option or model that cannot be used as given; the shell prints it as one line, exit code 2."""
