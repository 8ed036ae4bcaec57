"""What the server that children are forked from imports, once for all of them: also what they would import when they
make their parts, whatever these are.
"""

import numpy.random  # noqa: F401

import easgd_cli.algorithms.fragments
import easgd_cli.algorithms.groups
import easgd_cli.algorithms.slices
import easgd_cli.algorithms.statistics
import easgd_cli.launcher.kinds
import easgd_cli.launcher.processes
import easgd_cli.launcher.stand_in
import easgd_cli.models
import easgd_cli.problems.net
import easgd_cli.problems.tasks.multi_label
import easgd_cli.problems.tasks.next_token
import easgd_cli.problems.tasks.own
import easgd_cli.problems.tasks.regression
import easgd_cli.training.evaluator
import easgd_cli.training.master
import easgd_cli.training.worker  # noqa: F401
from easgd_cli.launcher.server_process import make_ready

make_ready()
