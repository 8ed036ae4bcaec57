"""What decides a run: events in, commands out."""
