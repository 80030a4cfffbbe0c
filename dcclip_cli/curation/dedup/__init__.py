"""Deduplication and decontamination over all pairs at once, in DuckDB."""
