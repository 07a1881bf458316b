"""What the project measures about itself: the paper's figures, and speed and memory."""
