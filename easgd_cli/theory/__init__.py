"""`easgd theory`: the paper's analysis as numbers and figures, and how it agrees with runs of the algorithms
themselves.
"""
