"""The package: what is installed, what it needs, and where `tasks/` and `gin/` go in a wheel."""

import pathlib
import re

from setuptools import find_namespace_packages, find_packages, setup

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
    r'^__version__ = "(.+?)"', (ROOT / "prompt_jax" / "__init__.py").read_text(), re.MULTILINE
).group(1)
README = ROOT / "README.md"

# Ranges around what was tested; `constraints/` has the exact sets. Upper bounds only where a
# library breaks its users between minor versions.
CORE = [
    "jax>=0.10,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "numpy>=2.2",
    "seqio>=0.0.20",  # brings TensorFlow and tensorflow-text; used to tokenise, never in the step
    "tensorflow-datasets>=4.9.9",
    "grain>=0.2.18,<0.3",
    "gin-config>=0.5",
    "sentencepiece>=0.2",
    "safetensors>=0.5",
    "tensorstore>=0.1.73",  # T5X's zarr arrays, in parts; local and gs://
    "msgpack>=1.1",  # T5X's tree of them
    "ml_dtypes>=0.5",  # bfloat16 in NumPy
    "etils[epath]>=1.13",
    "jaxtyping>=0.3",
    "rich>=13.9",
    "pyarrow>=18",  # Parquet; tensorflow-datasets brings it
    "tensorboardX>=2.6.2",
    "matplotlib>=3.9",
    "scikit-learn>=1.5",  # F1, Matthews; the bag-of-words baseline
    "scipy>=1.11",  # correlations
    "evosax>=0.3",  # CMA-ES
    "sacrebleu>=2.4",
    "rouge-score>=0.1.2",
]
TEST = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "pytest-timeout>=2.3",
    "hypothesis>=6.100",
    "beartype>=0.21",
    "ruff>=0.12",
    "build>=1.2",
    "setuptools>=64",  # the wheel test builds without the network
    "wheel>=0.45",
]
# libtpu, TPU's compiler, without a TPU: the version that belongs to the installed JAX.
PLAN = ["jax[tpu]>=0.10,<0.13"]
# `prompt-jax study --launcher=ray`: the fleets of a study on several hosts.
RAY = ["ray>=2.40"]
# To compare with them: tests marked `live_parity`, and tools/bench_peft.py in a venv of its own.
PARITY = ["torch>=2.6", "transformers>=5", "peft>=0.18"]


def tree(folder: str) -> list[str]:
    """The dotted names under prompt_jax of `folder` and its subfolders."""
    inner = find_namespace_packages(str(ROOT / folder))
    return [f"prompt_jax.{folder}", *(f"prompt_jax.{folder}.{name}" for name in inner)]


setup(
    name="prompt_jax",
    version=VERSION,
    description="Scale studies of prompt tuning in JAX/Flax",
    long_description=README.read_text() if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    author="The prompt_jax authors",
    python_requires=">=3.11,<3.14",  # tensorflow-text (through seqio) has no wheel for 3.14
    packages=[
        *find_packages(str(ROOT), include=["prompt_jax", "prompt_jax.*"]),
        *tree("tasks"),
        *tree("gin"),  # no __init__.py there: in a checkout it would hide the gin library
    ],
    package_dir={"prompt_jax.tasks": "tasks", "prompt_jax.gin": "gin"},
    package_data={
        "prompt_jax": ["assets/**"],
        "prompt_jax.tasks": ["**/*.json", "**/*.txt"],
        "prompt_jax.gin": ["**/*.gin"],
    },
    exclude_package_data={"": ["__pycache__/*"]},
    install_requires=CORE,
    extras_require={"test": TEST, "plan": PLAN, "ray": RAY, "parity": PARITY},
    entry_points={"console_scripts": ["prompt-jax = prompt_jax.__main__:console"]},
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
