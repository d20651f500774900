"""The Hugging Face Hub: aliases, downloads, cards."""
