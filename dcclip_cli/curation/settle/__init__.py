"""The rules that look at all pairs at once: evaluation sets, duplicates."""
