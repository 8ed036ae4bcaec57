"""Problems, one a file: what base.py says of each."""
