"""The record that a run leaves behind (metrics.jsonl, exchanges.bin, TensorBoard's file, summary.json), and what the
run shows while it goes on.

The launcher alone writes the record, so it outlives every other process.
"""
