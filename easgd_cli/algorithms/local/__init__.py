"""How x moves by a gradient between exchanges, a file each. configs/local/<name>.yaml gives each its name."""

from easgd_cli.algorithms.local.adagrad import Adagrad
from easgd_cli.algorithms.local.adamw import AdamW
from easgd_cli.algorithms.local.base import LocalStep
from easgd_cli.algorithms.local.momentum import Momentum
from easgd_cli.algorithms.local.nesterov import Nesterov
from easgd_cli.algorithms.local.plain import PLAIN, Plain
from easgd_cli.algorithms.local.rmsprop import RMSprop

__all__ = ["PLAIN", "Adagrad", "AdamW", "LocalStep", "Momentum", "Nesterov", "Plain", "RMSprop"]
