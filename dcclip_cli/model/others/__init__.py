"""Towers that one library or repository alone has: UForm, EmbeddingGemma 2, NaFlex models, FG-CLIP2 by its own code."""
