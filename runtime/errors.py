"""The errors a user can cause or meet. Each message is one sentence: what was given, what was expected, what to do."""


class FidError(Exception):
    """A failure that is not the user's mistake (no network, full disk, a broken file): exit code 1."""

    exit_code = 1


class InputError(FidError):
    """Bad usage or bad input (no face, unreadable picture, unknown name): exit code 2."""

    exit_code = 2
