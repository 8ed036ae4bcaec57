"""What the server imports, from which children are forked, once for all of them: also what they need to make their
parts, whatever the problem.
"""

import importlib
import pkgutil

import numpy.random  # noqa: F401

import easgd_cli.algorithms.fragments
import easgd_cli.algorithms.groups
import easgd_cli.algorithms.slices
import easgd_cli.algorithms.statistics
import easgd_cli.launcher.hosts.stand_in
import easgd_cli.launcher.kinds
import easgd_cli.launcher.processes.child
import easgd_cli.models
import easgd_cli.problems
import easgd_cli.training.evaluator
import easgd_cli.training.master
import easgd_cli.training.worker
from easgd_cli.launcher.processes.server_process import make_ready

for found in pkgutil.walk_packages(easgd_cli.problems.__path__, "easgd_cli.problems."):
    importlib.import_module(found.name)
make_ready()
