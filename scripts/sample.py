"""Run `imagen-jax sample` from a checkout; see imagen_jax/cli/sample.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("sample")
