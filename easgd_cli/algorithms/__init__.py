"""The methods, a file each. configs/algo/<name>.yaml gives each its name on the command line."""

from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Vectors, Worker
from easgd_cli.algorithms.downpour import DOWNPOUR
from easgd_cli.algorithms.eamsgd import EAMSGD
from easgd_cli.algorithms.easgd import EASGD
from easgd_cli.algorithms.mdownpour import MDOWNPOUR
from easgd_cli.algorithms.msgd import MSGD
from easgd_cli.algorithms.sgd import SGD

__all__ = ["DOWNPOUR", "EAMSGD", "EASGD", "MDOWNPOUR", "MSGD", "SGD", "Exchange", "Gradient", "Method", "Rule", "Vectors", "Worker"]
