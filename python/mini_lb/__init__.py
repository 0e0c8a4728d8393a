"""mini-lb, the prefill/decode load balancer for SGLang and vLLM, as a process that Python starts and stops.

    >>> from mini_lb import MiniLoadBalancer
    >>> with MiniLoadBalancer(
    ...     prefill=[("http://127.0.0.1:30000", 8998)],
    ...     decode=["http://127.0.0.1:30001"],
    ... ) as balancer:
    ...     balancer.wait_ready()
    ...     print(balancer.url)

``python -m mini_lb`` is the program itself, with all of its flags.
"""

from importlib.metadata import version

from ._balancer import MiniLbError, MiniLoadBalancer
from ._binary import binary

__all__ = ["MiniLbError", "MiniLoadBalancer", "__version__", "binary"]

__version__ = version("mini-lb")
