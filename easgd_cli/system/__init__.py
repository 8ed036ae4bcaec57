"""What is asked of the operating system: shared memory, channels, devices, files, signals."""
