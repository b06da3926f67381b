"""Packaging of noah-jax; tool settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds are the versions the tests ran with.
setup(
    name="noah-jax",
    version="0.1.0",
    description="NOAH, the attentive classification head, on every backbone of the paper, in JAX",
    long_description=(Path(__file__).parent / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["noah_jax", "noah_jax.*"]),
    package_data={
        "noah_jax.data": [
            "imagenet_classes.txt",
            "sample/*",
            "sample/fashion_mnist_sample/*/*",
        ],
        "noah_jax.explain": ["page.html"],
        "noah_jax.models": ["released.json"],
    },
    install_requires=[
        "absl-py>=2.5",
        "array-record>=0.8.6",
        "clu>=0.0.12",
        "etils[epath,epy]>=1.15",
        "flax>=0.12.8",
        "google-crc32c>=1.9",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "matplotlib>=3.11",
        "ml-collections>=1.1",
        "ml-dtypes>=0.6",
        "numba>=0.68",
        "numpy>=2.4",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "pillow>=13.0",
        "safetensors>=0.6.2",
        "scipy>=1.17",
        "simplejpeg>=1.9",
        "tensorboardX>=2.6.5",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.70",
    ],
    extras_require={
        "test": [
            "flatbuffers>=25.12.19",
            "gdown>=6.5.1",
            "opencv-python-headless>=5.0.0.93",
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "ruff>=0.17",
        ],
        "export": ["flatbuffers>=25.12.19"],
        "fast": ["opencv-python-headless>=5.0.0.93"],
        "released": ["gdown>=6.5.1"],
        "torch": ["torch>=2.13"],
        "tpu": ["jax[tpu]>=0.10.2", "gcsfs>=2026.9"],
        "cuda": ["jax[cuda13]>=0.10.2"],
    },
)
