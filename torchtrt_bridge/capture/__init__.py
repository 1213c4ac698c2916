"""Capture: from a module to one functional ATen graph with big operators whole."""
