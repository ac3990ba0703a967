"""Crypt: the few cryptographic acts of the platform, each in one place.

`ca` makes and signs certificates (ECDSA P-256), `box` seals secrets at rest (AES-256-GCM, key from a file), `signing`
signs and verifies short-lived tokens (Ed25519 JWT with a fixed algorithm list). It invents nothing: all of it is
`cryptography` and `pyjwt`. It refuses keys given by value in configuration, and files that others can read.
"""
