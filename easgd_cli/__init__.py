"""easgd: train one model with many workers around a center variable."""

__version__ = "0.1.0"
