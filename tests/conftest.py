"""Settings of the whole suite."""

from hypothesis import settings

# A deadline is a timed assertion: on a busy machine it fails for no fault of the code.
settings.register_profile("stratalens", deadline=None)
settings.load_profile("stratalens")
