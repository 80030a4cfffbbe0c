"""Teachers, students, and the directories that models live in."""
