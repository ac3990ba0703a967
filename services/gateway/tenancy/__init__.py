"""Tenancy: tenants, projects, environments, members and quotas, and the objects that clusters should hold for them.

Every write is one transaction: rows, event, and the desired state of each cluster concerned. `domain` holds the rules,
`*_store` the SQL, `*_api` the RPCs, `derive` turns rows into desired objects, `settle` lets what was deleted go once
every cluster has confirmed. Members' rights are decided elsewhere; here they only filter what is shown. It refuses to
give out a name, a namespace or a share of quota twice.
"""
