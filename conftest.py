"""Registers the shared fixtures for every test of the repository."""

pytest_plugins = ["tests.kit.fixtures"]
