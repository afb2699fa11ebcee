"""The demo: a model trained from scratch, of handwritten digits or of somebody's own images, judged and shown."""
