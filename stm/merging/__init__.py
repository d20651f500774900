"""The method: which tokens become one, where, and what the merged token holds."""
