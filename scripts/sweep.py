"""Run `imagen-jax sweep` from a checkout; see imagen_jax/cli/sweep.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("sweep")
