"""What does `collect` show a person? Counts, histograms and samples of what was kept and dropped, as one HTML file."""
