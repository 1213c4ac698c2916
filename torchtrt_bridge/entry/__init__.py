"""Entry points for users: `torch.compile`, `export`, `explain`, saved programs, Hugging Face."""
