"""What a run leaves behind, and what it shows meanwhile: metrics.jsonl, exchanges.bin, TensorBoard's file,
summary.json.

The launcher alone writes it, so the record outlives every other process.
"""
