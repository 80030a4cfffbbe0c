"""dcclip: make a light Chinese-English CLIP out of a big one, from data to device."""

__version__ = "0.1.0"
