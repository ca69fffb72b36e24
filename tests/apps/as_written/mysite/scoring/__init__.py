"""The app that has the model."""
