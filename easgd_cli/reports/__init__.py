"""What runs have shown, side by side: their record read, grouped over seeds, as numbers, figures and a page.

Nothing here writes into a run or takes part in one; running and broken off runs are read as they stand.
"""
