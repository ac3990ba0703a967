"""REST against Envoy: the same calls through our own REST, and through Envoy's transcoder in front of our own grpc.aio server.

`server` is the process under test, for either side with the same pipeline and the same handlers; `proxy` fetches and runs
Envoy; `load` is a client so small that it does not become what is measured; `cases` says what is asked.
"""
