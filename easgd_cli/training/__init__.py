"""The loops of a run and what they are made of: a step, the center, the worker, the master, the evaluator, what is
measured of them.
"""
