"""What the server that children are forked from imports, once for all of them."""

import easgd_cli.launcher.processes
import easgd_cli.launcher.stand_in
import easgd_cli.training.evaluator
import easgd_cli.training.master
import easgd_cli.training.worker  # noqa: F401
from easgd_cli.launcher.server_process import make_ready

make_ready()
