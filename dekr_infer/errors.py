"""The errors that users see: one line each, with the file and the remedy in it, and an exit code."""


class DekrError(Exception):
    """The work failed (data, model, a check that did not hold): exit code 1."""

    exit_code = 1


class ConfigError(DekrError):
    """The command line or the configuration is wrong: exit code 2."""

    exit_code = 2
