"""REST against Envoy: the same calls through our own REST, and through Envoy's transcoder in front of our own grpc.aio server.

`cases` says what is asked; `server` is the process under test, for either side with the same pipeline and the same handlers;
`sides` runs it and reads its CPU; `proxy` fetches and runs Envoy; `collector` takes spans; `load` is a client so small that it
does not become what is measured; `figures` makes the lines.
"""
