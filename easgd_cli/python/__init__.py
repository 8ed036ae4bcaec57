"""The interface for Python; its names are imported from `easgd_cli`."""
