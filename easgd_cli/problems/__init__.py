"""Problems, one a file: what problem.py says of each."""
