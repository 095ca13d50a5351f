"""Run `imagen-jax prepare` from a checkout; see imagen_jax/cli/prepare.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("prepare")
