"""Clocks and memory: how long models take and what they hold, in turns within one process."""
