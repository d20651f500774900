"""The page that `stm report` writes: one HTML file that needs no other file and makes no request."""
