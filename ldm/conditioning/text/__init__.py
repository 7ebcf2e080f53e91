"""Text: encoders, tokenizers, prompts."""
