"""Fixtures of these tests."""

from services.gateway.tenancy.tests.house import house

__all__ = ["house"]
