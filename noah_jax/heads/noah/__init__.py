"""The NOAH head. Read `module.py`, then `poca.py`."""
