"""The read side: merged counters in memory, and the answers that are computed from them."""
