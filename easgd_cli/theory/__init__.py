"""`easgd theory`: the paper's analysis as numbers and figures, and how runs of the algorithms agree with it."""
