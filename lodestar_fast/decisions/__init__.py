"""What is known of single decisions: why they were made, and a log of them.

    schema.py    a decision as the router wrote it (a row), and the first line of a log
    why.py       the same for people: the admin port's JSON, a plain sentence

A row is written by core/rows.pyx. Everything here works on rows, wherever they come from: the
router's ring, the admin port or a log file.
"""
