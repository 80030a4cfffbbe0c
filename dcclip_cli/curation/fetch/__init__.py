"""Safe and polite downloads of images that a source knows by URL only."""
