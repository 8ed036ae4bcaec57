"""Data sets: those of this package, the forms that users' own may have (`dataset.py`), reading them from files, and
making batches. torchvision is imported through vision.py only.
"""
