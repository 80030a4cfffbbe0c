"""Running a model: from a bundle without torch, or from anything with it."""
