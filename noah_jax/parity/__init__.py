"""Are these the original's models? Judged by numbers that the original's code computed."""
