"""The error for a user's mistake: one line that names the thing, what was given, and the mend."""


class InputError(ValueError):
    """A file, option or model that cannot be used as given; the shell prints it as one line, exit code 2."""
