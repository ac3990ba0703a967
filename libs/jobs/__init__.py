"""Jobs: work that outlives its request, at least once, never lost silently.

PostgreSQL is the truth and holds the backlog; a caller's transaction writes the row (`enqueue`). The dispatcher keeps a
bounded window of (job, attempt, dispatch) messages in JetStream; a runner claims with one UPDATE that raises the fence,
keeps a lease by heartbeat, writes progress and the outcome only while its fence is the newest, and retries with
back-off until the job is DEAD, a row for a human. A message lost, doubled or late changes nothing: the claim decides.
Handlers may run twice: they look first, then act. Payloads, progress and results hold no secrets. Exactly once is
promised for effects in PostgreSQL alone, written in the transaction of the outcome.
"""
