"""What a user may set: every key with its type, checked, and the code that a setting names."""
