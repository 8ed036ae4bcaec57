"""A run's processes on this machine: started, listened to, started again."""
