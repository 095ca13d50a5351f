"""Run `imagen-jax benchmark` from a checkout; see imagen_jax/cli/benchmark.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("benchmark")
