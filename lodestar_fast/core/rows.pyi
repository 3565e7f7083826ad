"""core/rows.pyx has nothing for Python: decisions.pyx calls it."""
