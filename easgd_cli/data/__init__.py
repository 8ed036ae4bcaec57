"""Data sets. Each file gives one as `Images`; vision.py is the only door to torchvision."""
