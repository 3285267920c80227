"""The exception whose message is meant for the user."""


class UserError(Exception):
    """Input that cannot be used: a file, an annotation, a setting, a checkpoint.

    The message is one sentence that says what was wrong, where (file, image id, annotation id,
    flag) and what to do. Entry points print it without a traceback and exit with status 1.
    """
