"""What the server that children are forked from imports, once for all of them."""

import signal

import easgd_cli.evaluator
import easgd_cli.launcher.children
import easgd_cli.master
import easgd_cli.worker  # noqa: F401

# A scheduler may send SIGTERM to every process of a run. The launcher decides then; the server ends with the launcher.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
