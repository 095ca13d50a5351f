"""Run `imagen-jax embed` from a checkout; see imagen_jax/cli/embed.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("embed")
