"""The rules of tenancy, pure: no wire, no SQL, no cluster."""
