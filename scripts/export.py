"""Run `imagen-jax export` from a checkout; see imagen_jax/cli/export.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("export")
