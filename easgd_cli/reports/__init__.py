"""Reports on runs, side by side: reads their records, groups them over seeds, makes tables, figures and a page of them.

Nothing here writes into a run or takes part in one. Runs that still run, or were broken off, are read as they stand.
"""
