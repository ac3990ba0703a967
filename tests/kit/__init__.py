"""Kit: real servers for tests, started once per run through the local stack's own code, on the loopback and free ports.

Fixtures (in `fixtures`): `postgres` and `database`, `hub_ca`, `nats_server`, `cluster`, `jaeger`, `stack`. Every server
ends with the test run, whatever ends it. `eventually` waits for a condition with a deadline that
`KUBEGEMS_TEST_TIMESCALE` stretches, and prints what it took. It mocks nothing, and reads no kubeconfig but
`KUBEGEMS_TEST_KUBECONFIG`, whose cluster must hold the marker ConfigMap `kube-system/kubegems-test-cluster`.
"""
