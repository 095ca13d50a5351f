"""Run `imagen-jax emoji` from a checkout; see imagen_jax/cli/emoji.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("emoji")
