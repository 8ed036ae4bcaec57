"""From settings to objects: the method, the problem, the data and the net of one run, made once and checked."""
