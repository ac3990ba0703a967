"""Audit: lets people read the records of the scopes whose audit they may read; libs/audit writes them."""
