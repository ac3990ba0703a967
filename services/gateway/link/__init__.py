"""Link: the hub's end of the member clusters' tunnels.

`Links` takes the tunnels that agents dial, knows which clusters are online, calls their services and sends Kubernetes
requests through them, each under a short signed grant that says as whom. `KubernetesEdge` is `/k8s/clusters/<name>/…`
for kubectl and every other Kubernetes client. What an agent may ask of the hub is served through the rpc pipeline,
its cluster taken from its certificate. Several gateways are one hub: `Presence` keeps in NATS who holds which tunnel,
`Peers` ask the one that does, `Leaving` sends agents elsewhere before a stop. It refuses certificates that fleet does not
know, to act without a user, and to pass on what another gateway has passed on.
"""
