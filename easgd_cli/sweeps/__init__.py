"""Many runs: which jobs there are, where each lives, how it stands, and who runs it."""
