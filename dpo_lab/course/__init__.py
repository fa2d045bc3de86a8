"""What a reader of the course holds: exercises, figures, the RLHF road, speed, statistics, kept results."""
