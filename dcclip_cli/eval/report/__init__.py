"""What does `eval` show a person? Tables, gaps, weak classes, confusions and pictures of errors, as one HTML file."""
