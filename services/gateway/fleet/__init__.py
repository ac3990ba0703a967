"""Fleet: member clusters, how agents join them, and what they should hold.

`clusters_*`, `join_tokens_*` and `enrolment_*` keep clusters, one-time tokens and certificates. `desired` keeps, per
cluster, a generation-numbered set of objects and tombstones that others write in the transaction of their change;
`desired_api` serves it to the agent and takes its reports, `statuses` keeps them, `hints` tells agents to fetch.
`access_api` lets the hub's other services reach a cluster through the tunnel. It refuses to forget a removal that the
cluster has not confirmed, and to give a certificate to anyone but the key that a token or certificate is bound to.
"""

PROTOCOL_KEY = "kubegems-protocol"  # in the metadata of what an agent asks: version of the tunnel's protocol
