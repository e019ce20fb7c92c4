"""The one exception that carries a message for the person at the keyboard."""


class UserError(ValueError):
    """Bad input or a bad environment: says what, what was expected, what came and what to do.

    Command lines print it as ``error: ...`` and exit with status 2, without a traceback.
    """
