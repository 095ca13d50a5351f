"""Run `imagen-jax recogniser` from a checkout; see imagen_jax/cli/recogniser.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("recogniser")
