"""Client of KubeGems: the generated stubs, with what every program would otherwise write around them.

`Client(target, ca=…)` is a connection that trusts one CA; `sign_in` or an API key says who calls, and tokens are renewed
before they end. `client.stub(SomeServiceStub)` gives the generated stub, typed: a call has one budget of time for all its
attempts, a write carries one idempotency key through them, and what fails raises a Fault with the reason that the hub
gave. `client.pages` walks a list to its end, `client.stream` keeps a server stream open and goes on after the last event
that was seen. It refuses channels without TLS, to try again what the hub may have done and would not recognise (signing
in, refreshing), and to wait without a bound.
"""

from libs.client.client import Client
from libs.client.paging import pages
from libs.client.retry import Retries

__all__ = ["Client", "Retries", "pages"]
