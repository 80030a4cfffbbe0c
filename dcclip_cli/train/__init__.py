"""Both training stages on one loop."""
