"""Desired state: what the hub says the cluster should hold, fetched, applied and kept, by generation."""
