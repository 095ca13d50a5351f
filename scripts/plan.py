"""Run `imagen-jax plan` from a checkout; see imagen_jax/cli/plan.py."""

if __name__ == "__main__":
    from imagen_jax.cli import main

    main.run("plan")
