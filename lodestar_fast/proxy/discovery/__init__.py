"""Where engines are found. source.py says what a source is; file, dns and kubernetes are such;
membership.py keeps the union of what they tell in the fleet; watching.py runs them.
"""

from __future__ import annotations
