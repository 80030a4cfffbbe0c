"""Image-text pairs: reading, filtering, writing, batching."""
