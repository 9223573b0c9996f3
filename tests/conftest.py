"""What every test session shares: 8 fake CPU devices, fast compiles, shapes checked at run time."""

import gc
import os
import pathlib
from importlib import metadata

# Before the first import of jax. Single-device code simply uses device 0 of the eight.
# Nothing is timed: what compiles fastest is best.
_FLAGS = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0 "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if metadata.version("jaxlib").startswith("0.10."):  # half the time; later ones have no such choice
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
_CACHE = pathlib.Path(__file__).resolve().parent.parent / ".cache" / "jax"
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def pytest_configure(config):
    """Imports what is large, once, and turns the checks on."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # the one that hands out tests to workers runs none
    # Before the hook: it would compile the sources of what our modules import, TensorFlow's too.
    import orbax.checkpoint  # noqa: F401
    import seqio  # noqa: F401
    from jaxtyping import install_import_hook

    # Left on for the session: modules are imported lazily, long after this file.
    install_import_hook("prompt_jax", "beartype.beartype")
    # Tracing makes many objects and few cycles; what is imported stays.
    gc.freeze()
    gc.set_threshold(100_000, 20, 20)
