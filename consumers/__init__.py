"""The folds: what a partition's records do to its state, and the runner that commits it.

Read `fold.py` for the words, `partition.py` for the flow, then one fold at a time.
"""
