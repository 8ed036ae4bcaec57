"""The loops of worker, master and evaluator, the parts they are made of (a step, the center), and what is measured of
them.
"""
