"""The methods, a file each. configs/algo/<name>.yaml gives each its name on the command line."""

from easgd_cli.algorithms.allreduce import AllReduce
from easgd_cli.algorithms.async_diloco import AsyncDiLoCo
from easgd_cli.algorithms.base import Exchange, Gradient, Method, Rule, Vectors, Worker
from easgd_cli.algorithms.diloco import DiLoCo
from easgd_cli.algorithms.downpour import DOWNPOUR
from easgd_cli.algorithms.eamsgd import EAMSGD
from easgd_cli.algorithms.easgd import EASGD
from easgd_cli.algorithms.easgd_tree import EASGDTree
from easgd_cli.algorithms.gauss_seidel_easgd import GaussSeidelEASGD
from easgd_cli.algorithms.gossip import Gossip, GossipPull, GossipPush
from easgd_cli.algorithms.grouped_easgd import GroupedEASGD
from easgd_cli.algorithms.mdownpour import MDOWNPOUR
from easgd_cli.algorithms.model_averaging import ModelAveraging
from easgd_cli.algorithms.msgd import MSGD
from easgd_cli.algorithms.pull_then_step import PullThenStep
from easgd_cli.algorithms.sgd import SGD
from easgd_cli.algorithms.streaming_diloco import StreamingDiLoCo
from easgd_cli.algorithms.sync_eamsgd import SyncEAMSGD
from easgd_cli.algorithms.sync_easgd import SyncEASGD

__all__ = [
    "DOWNPOUR",
    "EAMSGD",
    "EASGD",
    "MDOWNPOUR",
    "MSGD",
    "SGD",
    "AllReduce",
    "AsyncDiLoCo",
    "DiLoCo",
    "EASGDTree",
    "Exchange",
    "GaussSeidelEASGD",
    "Gossip",
    "GossipPull",
    "GossipPush",
    "Gradient",
    "GroupedEASGD",
    "Method",
    "ModelAveraging",
    "PullThenStep",
    "Rule",
    "StreamingDiLoCo",
    "SyncEAMSGD",
    "SyncEASGD",
    "Vectors",
    "Worker",
]
