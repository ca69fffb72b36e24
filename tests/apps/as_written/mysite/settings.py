"""No more than the project needs."""

SECRET_KEY = "of a test"
INSTALLED_APPS = ["mysite.scoring"]
DATABASES = {}
USE_TZ = True
