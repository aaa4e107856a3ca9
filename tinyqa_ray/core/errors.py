"""Errors with one line for the user: a mistake of the user's, and a passing fault of a store or hub."""


class InputError(ValueError):
    """A file, option or model that cannot be used as given; the shell prints it as one line, exit code 2."""


class StoreError(RuntimeError):
    """A store or hub that did not serve in time: nobody's mistake, and the same command may succeed later.

    The shell prints it as one line, exit code 75 (``EX_TEMPFAIL``); Ray may retry it.
    """
