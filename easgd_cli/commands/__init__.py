"""The commands, one file each: compose, check, call. Only here are hydra and omegaconf imported."""
