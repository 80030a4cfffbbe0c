"""Training data: datasets of image-text pairs, batch samplers, the collator, and readers of
third-party files.
"""
