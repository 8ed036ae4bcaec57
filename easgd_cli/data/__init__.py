"""Data: sets of this package, forms that users' own may have (`dataset.py`), what lies in files, and how batches are
read. vision.py is the only door to torchvision.
"""
