"""Controller: makes tenants' environments real in one cluster, and keeps them so."""
