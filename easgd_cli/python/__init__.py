"""The way in from Python; `easgd_cli` itself has its names."""
