from tests.deepfloyd_models import cascade_of_two, change_json, goldens, load_model, pipeline  # noqa: F401
