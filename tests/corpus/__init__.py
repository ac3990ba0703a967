"""Requests of real kubectl and helm releases, recorded by `record.py`; `tests/e2e/test_transparency.py` replays them."""
