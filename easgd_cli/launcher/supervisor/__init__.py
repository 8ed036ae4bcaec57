"""The part of a launcher that decides about a run: events in, commands out."""
