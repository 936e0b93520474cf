"""What driver and workers say to each other, and the laws that both compute: they agree, or nothing is counted."""
