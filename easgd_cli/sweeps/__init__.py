"""Sweeps of many runs: which jobs there are, which directory each has, how each stands, and what runs them."""
