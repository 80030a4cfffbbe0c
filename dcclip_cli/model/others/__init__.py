"""Towers that one library or repository alone has: UForm, NaFlex models, and FG-CLIP2 with its own code."""
