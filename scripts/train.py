"""Run `imagen-jax train` from a checkout; see imagen_jax/cli/train.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("train")
