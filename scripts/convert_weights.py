"""Run `imagen-jax convert` from a checkout; see imagen_jax/cli/convert.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("convert")
