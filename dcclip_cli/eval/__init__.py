"""Zero-shot benchmarking in Chinese and English."""
