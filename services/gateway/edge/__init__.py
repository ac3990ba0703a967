"""The public edge of the gateway: rate limits, probes and keys for everyone, and the services that others own."""
