from tests.deepfloyd_models import goldens  # noqa: F401
