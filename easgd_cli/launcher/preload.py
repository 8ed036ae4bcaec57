"""What the server that children are forked from imports, once for all of them."""

import easgd_cli.evaluator
import easgd_cli.launcher.children
import easgd_cli.master
import easgd_cli.worker  # noqa: F401
