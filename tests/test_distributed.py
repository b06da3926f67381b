"""What this package needs of JAX's private modules."""

import jax
from jax._src import distributed as private

from noah_jax import distributed


def test_jax_still_has_its_key_value_store_where_we_look():
    """If this fails, JAX has moved what `noah_jax.distributed` imports from `jax._src.distributed`.

    Look at JAX's `jax.distributed.initialize` for where the client of the coordination service is
    kept now, and whether there is a public way to it; then change `client`, `process_index` and
    `process_name` in noah_jax/distributed.py, which are the only users. `pytest -m multiprocess`
    says whether it works with several processes.
    """
    message = f"JAX {jax.__version__} has changed its private state; see this test's docstring"
    state = private.global_state
    for name in ("client", "num_processes", "process_id", "coordinator_address"):
        assert hasattr(state, name), message
    assert state.client is None, message
    client = __import__("jaxlib._jax", fromlist=["_jax"]).DistributedRuntimeClient
    for name in (
        "key_value_set",
        "key_value_dir_get",
        "blocking_key_value_get",
        "wait_at_barrier",
    ):
        assert hasattr(client, name), message


def test_a_single_process_has_no_store():
    assert distributed.client() is None
    assert distributed.process_index() == 0 and distributed.process_name() == ""
    assert distributed.gather("name", "value") == ["value"]
    distributed.barrier("name")
    distributed.check_equal("name", {"the number": 1})
