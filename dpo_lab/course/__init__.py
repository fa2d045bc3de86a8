"""What a reader of the course holds: exercises, figures, RLHF for comparison, speed, statistics, saved results."""
