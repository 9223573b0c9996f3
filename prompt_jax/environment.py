"""What a process of ours is told before anything is imported: environment variables alone.

Each is a default: what the user has set stays.
"""

import os
import sys

# TensorFlow's start-up lines say nothing about a run.
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0", "GRPC_VERBOSITY": "ERROR"}
# A step's temporaries, hundreds of megabytes, are mapped anew for each step; glibc asks for huge
# pages only if it is told to before the process starts. (8 to 13 % of a step of T5 Small.)
HUGE_PAGES = "glibc.malloc.hugetlb=1"


def cache_root() -> str:
    """Where caches lie that no MODEL_DIR owns: PROMPT_JAX_CACHE, else ~/.cache/prompt_jax."""
    return os.path.expanduser(os.environ.get("PROMPT_JAX_CACHE") or "~/.cache/prompt_jax")


def prepare() -> None:
    """Sets the defaults: quiet libraries, and programs that are compiled once and kept."""
    kept = {
        "JAX_COMPILATION_CACHE_DIR": os.path.join(cache_root(), "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    for name, value in {**QUIET, **kept}.items():
        os.environ.setdefault(name, value)


def use_huge_pages() -> None:
    """Starts this process anew, with the same arguments and number, where glibc must be told."""
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
