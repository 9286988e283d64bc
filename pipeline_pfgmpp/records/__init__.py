"""What is written down about results: under which digest, of which D, by which command, and never half of it."""
