"""Problems, one a file; base.py says what a problem is."""
