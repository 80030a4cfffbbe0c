"""Scores that models give to pairs and captions."""
