"""Gateway: the only public edge of the hub. Sign-in, rights, tenancy, clusters, audit, the end of the agents' tunnels, `/k8s`."""
