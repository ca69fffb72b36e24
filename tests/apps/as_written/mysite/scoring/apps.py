import os

from django.apps import AppConfig


class ScoringConfig(AppConfig):
    name = "mysite.scoring"
    model = None

    def ready(self):
        import keras

        ScoringConfig.model = keras.models.load_model(os.environ["MODEL"])
