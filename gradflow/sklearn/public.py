"""What `gradflow.sklearn` offers; it is imported when it is used first, since it needs scikit-learn."""

from gradflow.environment import imported_extra

imported_extra("sklearn.base", "scikit-learn", "train", "gradflow.sklearn")

from gradflow.sklearn.classifier import MLPClassifier  # noqa: E402
from gradflow.sklearn.regressor import MLPRegressor  # noqa: E402

__all__ = ["MLPClassifier", "MLPRegressor"]
