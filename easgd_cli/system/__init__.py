"""Requests to the operating system: shared memory, channels between processes, devices, files, Ctrl-C at the start."""
