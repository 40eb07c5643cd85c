"""Segmenting what is drawn, while one looks: a process beside the page computes, and its tiles are seen at once."""
