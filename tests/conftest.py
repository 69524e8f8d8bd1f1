"""Ctrl-C as at a terminal, also where the tests run in the background: a shell has it ignored there, by every child."""

import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
