"""Run `imagen-jax evaluate` from a checkout; see imagen_jax/cli/evaluate.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("evaluate")
