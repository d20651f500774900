"""Figures of results, drawn by matplotlib from rows that are written beside them."""
