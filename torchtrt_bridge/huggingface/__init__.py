"""Hugging Face models and pipelines, as they are."""
