"""`dcclip fit`: the best student for a budget of file size and latency."""
