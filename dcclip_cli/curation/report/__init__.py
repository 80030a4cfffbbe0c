"""The report of a collection: counts, histograms and samples of what was kept and dropped, as one HTML file."""
