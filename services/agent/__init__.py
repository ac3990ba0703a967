"""Agent: the one process of ours in a member cluster that talks to the hub.

It joins with a one-time token and a pinned CA, keeps its certificate fresh, holds the tunnel open, applies the desired
state the hub derives, reports what became of it, publishes what changes in the cluster, and answers the hub's calls as
the user they are made for. It never acts as itself for a user, never removes what no tombstone names, and needs no
database.
"""
