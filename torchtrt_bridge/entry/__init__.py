"""How a user comes in: `torch.compile`, `export`, `explain`, saved programs, Hugging Face."""
