"""What is kept of a run, and what users are told of it."""
