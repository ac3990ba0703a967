"""Observed state: what changes in the cluster, kept as a trimmed copy and published as small events."""
