"""What turns volumes and texts into vectors: image and text encoders, readouts, heads."""
