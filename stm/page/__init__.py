"""The page that `stm report` writes: one HTML file that holds all that it shows, and asks nobody for anything."""
